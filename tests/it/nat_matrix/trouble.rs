//! What takes minutes: mappings that end in the middle of a session, and pairs for which direct packets are useless.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lab::NatBehavior;
use crate::tools;
use crate::waiting::{pace, pause_under_test};

use super::cells::{Class, Setting};
use super::run::connect;
use super::scene::Scene;

const UP: Duration = Duration::from_secs(30);
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));
/// Between two lines.
const PACE: Duration = Duration::from_millis(50);

#[test]
#[ignore = "long: three minutes behind carrier NATs that drop each mapping after 60 s, however much it is used"]
fn long_mapping_lifetime() {
    if !tools::have_laboratory() {
        return;
    }
    let scene = Scene::new(Setting::Apart(Class::PortRestricted, Class::PortRestricted), 1, 0);
    for nat in &scene.nats {
        scene.net.change(nat, |_| NatBehavior {
            lifetime: Some(Duration::from_secs(60)),
            ..NatBehavior::PORT_RESTRICTED
        });
    }
    let (mut agents, _) = connect(&scene, &[]).unwrap();
    let mut stdin = agents[1].stdin.take().unwrap();
    let stdout = agents[0].stdout.take().unwrap();
    let end = Instant::now() + Duration::from_secs(180);
    std::thread::spawn(move || {
        let mut number = 0_u64;
        while Instant::now() < end && writeln!(stdin, "{number}").is_ok() {
            number += 1;
            pace(PACE);
        }
    });
    let (mut longest, mut previous, mut expected) = (Duration::ZERO, None, 0_u64);
    for line in BufReader::new(stdout).lines() {
        assert_eq!(line.unwrap().parse(), Ok(expected), "a line is missing or repeated");
        expected += 1;
        let now = Instant::now();
        longest = longest.max(previous.map_or(Duration::ZERO, |previous| now - previous));
        previous = Some(now);
    }
    let [listener, connector] = &agents;
    let printed = [listener, connector].map(|agent| agent.process.printed()).join("\n");
    tools::print(&format!("{expected} lines, the longest gap {} ms\n{printed}", longest.as_millis()));
    assert!(expected > 2000, "the session ended early\n{printed}");
    for agent in &agents {
        assert_eq!(agent.last_path()["kind"], "direct", "{printed}");
    }
}

#[test]
#[ignore = "long: two minutes of a pair without a direct path, whose useless packets become few"]
fn long_hopeless_pair() {
    if !tools::have_laboratory() {
        return;
    }
    let scene = Scene::new(Setting::Apart(Class::Random, Class::Random), 1, 0);
    let useless = Arc::new(Mutex::new(Vec::new()));
    let counted = Arc::clone(&useless);
    scene.net.add_rule(Box::new(move |now, header| {
        if header.source.ip() != SERVER && header.destination.ip() != SERVER {
            counted.lock().unwrap().push(now);
        }
        true
    }));
    let (mut agents, begun) = connect(&scene, &[]).unwrap();
    let mut stdin = agents[1].stdin.take().unwrap();
    writeln!(stdin, "hello").unwrap();
    let mut line = String::new();
    BufReader::new(agents[0].stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "hello\n");
    pause_under_test(Duration::from_secs(120));
    let times = useless.lock().unwrap().clone();
    let window = |from: u64| {
        let within = |at: &&Instant| (from..from + 10).contains(&(**at - begun).as_secs());
        times.iter().filter(within).count()
    };
    let windows: Vec<usize> = (0..12).map(|index| window(10 * index)).collect();
    tools::print(&format!("packets between the peers, by 10 s: {windows:?}"));
    let [early, late] = [&windows[..6], &windows[6..]].map(|windows| windows.iter().sum::<usize>());
    assert!(early <= 800 && 2 * late <= early, "{windows:?}");
    for agent in &mut agents {
        agent.stdin = None;
    }
    drop(stdin);
    assert!(agents[1].process.wait(UP).success());
}
