// node-datachannel (libdatachannel with libjuice) on loopback, driven by JSON lines: `ice_node.mjs FOLDER controlling|controlled`.
// The session behind ICE never begins: the other side has no DTLS.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

const [folder, role] = process.argv.slice(2);
const { PeerConnection } = createRequire(`${folder}/`)('node-datachannel');

const report = (news, fields = {}) => console.log(JSON.stringify({ news, ...fields }));
const value = (sdp, name) => sdp.match(new RegExp(`^a=${name}:(.*)$`, 'm'))[1].trim();
const describe = (ufrag, password) =>
  [
    'v=0',
    'o=- 1 0 IN IP4 127.0.0.1',
    's=-',
    't=0 0',
    'a=group:BUNDLE 0',
    'm=application 9 UDP/DTLS/SCTP webrtc-datachannel',
    'c=IN IP4 0.0.0.0',
    'a=mid:0',
    'a=ice-options:trickle',
    `a=ice-ufrag:${ufrag}`,
    `a=ice-pwd:${password}`,
    `a=fingerprint:sha-256 ${Array(32).fill('AB').join(':')}`,
    `a=setup:${role === 'controlling' ? 'active' : 'actpass'}`,
    'a=sctp-port:5000',
    'a=max-message-size:65536',
    '',
  ].join('\r\n');

const connection = new PeerConnection('judge', { iceServers: [], bindAddress: '127.0.0.1' });
connection.onLocalDescription((sdp) => {
  report('credentials', { ufrag: value(sdp, 'ice-ufrag'), password: value(sdp, 'ice-pwd') });
});
connection.onLocalCandidate((candidate) => report('candidate', { candidate: candidate.replace('a=', '') }));
connection.onGatheringStateChange((state) => state === 'complete' && report('end'));
connection.onIceStateChange((state) => {
  report('connected', { connected: state === 'connected' || state === 'completed' });
});
let known;
setInterval(() => {
  const pair = connection.getSelectedCandidatePair();
  if (!pair) return;
  const [local, remote] = [pair.local, pair.remote].map(({ address, port }) => `${address}:${port}`);
  if (known !== local + remote) report('pair', { local, remote });
  known = local + remote;
}, 50);
if (role === 'controlling') connection.createDataChannel('judge');

createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line);
  if (order.order === 'remote') {
    const type = role === 'controlling' ? 'answer' : 'offer';
    connection.setRemoteDescription(describe(order.ufrag, order.password), type);
  }
  if (order.order === 'candidate') connection.addRemoteCandidate(`a=${order.candidate}`, '0');
});
createInterface({ input: process.stdin }).on('close', () => process.exit());
