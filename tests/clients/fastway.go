// The endpoints of fastway (github.com/funny/fastway at commit 3037374, the last with seven commands) against a gateway:
// a server that echoes, a client that dials it, the server dialling the client, and Pings in between.
//
//	fastway CLIENTS-ADDRESS SERVERS-ADDRESS KEY MESSAGES
package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/funny/fastway/proto"
	"github.com/funny/link"
	"github.com/funny/slab"
)

const (
	serverID  = 10086
	maxPacket = 512 * 1024
	longest   = 60000
	// Longer than two ping intervals of the test's gateway.
	quiet = 3 * time.Second
)

func must(what string, err error) {
	if err != nil {
		fmt.Println("failed:", what, err)
		os.Exit(1)
	}
}

func echo(session *link.Session) {
	for {
		received, err := session.Receive()
		if err != nil {
			return
		}
		message := append([]byte{}, *(received.(*[]byte))...)
		if session.Send(&message) != nil {
			return
		}
	}
}

func exchange(session *link.Session, message []byte) {
	sent := append([]byte{}, message...)
	must("send", session.Send(&sent))
	received, err := session.Receive()
	must("receive", err)
	if !bytes.Equal(*(received.(*[]byte)), message) {
		fmt.Println("failed: another message came back")
		os.Exit(1)
	}
}

// An endpoint of fastway refuses whoever dials it while nobody waits in Accept.
func accepting(endpoint *proto.Endpoint) {
	go func() {
		for {
			session, _, remote, err := endpoint.Accept()
			if err != nil {
				return
			}
			fmt.Println("accepted from", remote)
			go echo(session)
		}
	}()
	time.Sleep(300 * time.Millisecond)
}

func main() {
	clients, servers, key := os.Args[1], os.Args[2], os.Args[3]
	messages, err := strconv.Atoi(os.Args[4])
	must("arguments", err)
	pool := slab.NewAtomPool(64, 64*1024, 2, 1024*1024)
	server, err := proto.DialServer(servers, pool, serverID, key, 3, maxPacket, 64*1024, 1024)
	must("DialServer", err)
	accepting(server)
	client, err := proto.DialClient(clients, pool, maxPacket, 2048, 1024)
	must("DialClient", err)
	if _, _, err := client.Dial(serverID + 1); err != proto.ErrRefused {
		fmt.Println("failed: a dial to nobody ended with", err)
		os.Exit(1)
	}
	there, _, err := client.Dial(serverID)
	must("client's dial", err)
	for number := 0; number < messages; number++ {
		exchange(there, bytes.Repeat([]byte{byte(number)}, 1+number*7%longest))
	}
	accepting(client)
	back, _, err := server.Dial(1)
	must("server's dial", err)
	exchange(back, []byte("from the server"))
	back.Close()
	there.Close()
	time.Sleep(quiet)
	again, _, err := client.Dial(serverID)
	must("dial after a quiet time", err)
	exchange(again, []byte("still here"))
	fmt.Println("done", messages)
}
