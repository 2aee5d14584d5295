//! Releases that share most with the one before: only what changed is moved, whatever happens on the way.

use std::fs;
use std::io;
use std::path::PathBuf;

use drover_shared::Digest;
use drover_shared::chunks::{Cutter, FrameWriter, IndexWriter};
use drover_shared::message::{Finished, Part, ToAgent, ToServer};
use drover_shared::order::{Entry, IndexOf, Step};
use drover_shared::words::ExecutionState;

use crate::bench::{Bench, entry, execution_id};
use crate::server::{Got, Peer, Server, agent, run};

/// Files by name.
type Files = Vec<(&'static str, Vec<u8>)>;

/// An artifact with its index.
struct Made {
    artifact: Vec<u8>,
    index: Vec<u8>,
    files: Files,
}

impl Made {
    fn of(files: &Files) -> Self {
        let mut writer = FrameWriter::new(Vec::new(), 3).unwrap();
        let mut heads = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            heads.append_data(&mut header, name, io::empty()).unwrap();
            writer.glue(&std::mem::take(heads.get_mut())).unwrap();
            for chunk in Cutter::new(&content[..], content.len() as u64) {
                writer.chunk(&chunk.unwrap()).unwrap();
            }
            writer.glue(&vec![0; (512 - content.len() % 512) % 512]).unwrap();
        }
        writer.glue(&[0; 1024]).unwrap();
        let (artifact, index) = writer.finish().unwrap();
        Self { artifact, index: index.unwrap(), files: files.clone() }
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.artifact)
    }

    fn release(&self) -> String {
        format!("r-{}", self.digest().short())
    }

    /// The bytes of a part.
    fn part(&self, part: &Part) -> Vec<u8> {
        match part {
            Part::Whole => self.artifact.clone(),
            Part::Index => self.index.clone(),
            Part::Ranges(ranges) => {
                let bytes = |at: u64| usize::try_from(at).unwrap();
                let parts = ranges.iter().map(|one| &self.artifact[bytes(one.offset)..bytes(one.offset + one.length)]);
                parts.collect::<Vec<_>>().concat()
            }
        }
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// Two versions of which the second changes one small file and the middle of a long one.
fn versions() -> (Made, Made) {
    let long = noise(1, 3_000_000);
    let first: Files = vec![
        ("same.bin", noise(2, 500_000)),
        ("long.bin", long.clone()),
        ("a.txt", b"one\n".to_vec()),
        ("b.txt", b"the same\n".to_vec()),
    ];
    let mut second = first.clone();
    second[1].1 = [&long[..1_000_000], b"inserted", &long[1_000_000..]].concat();
    second[2].1 = b"two\n".to_vec();
    (Made::of(&first), Made::of(&second))
}

struct Scene {
    bench: Bench,
    server: Server,
    agent: Option<tokio::process::Child>,
    peer: Option<Peer>,
}

/// What a delivery took.
#[derive(Default)]
struct Delivered {
    asked: Vec<Part>,
    moved: usize,
    log: Vec<u8>,
    finished: Option<Finished>,
}

impl Delivered {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }

    /// Bytes that came of the artifact itself, as a share of it in percent.
    fn is_whole(&self) -> bool {
        self.asked.contains(&Part::Whole)
    }
}

impl Scene {
    async fn new() -> Self {
        let bench = Bench::new();
        let mut server = Server::start().await;
        let agent = agent(&bench.data_dir(), Some(&server.token));
        let (peer, _) = server.open(|_| (true, 0)).await;
        Self { bench, server, agent: Some(agent), peer: Some(peer) }
    }

    fn site(&self) -> PathBuf {
        self.bench.path("site")
    }

    fn entry(&self, made: &Made) -> Entry {
        let (digest, release) = (made.digest(), made.release());
        let index = Some(IndexOf { digest: Digest::of(&made.index), size_bytes: made.index.len() as u64 });
        let steps = vec![
            Step::Fetch { digest, size_bytes: made.artifact.len() as u64, index },
            Step::Unpack { digest, release: release.clone() },
            Step::Switch { release },
        ];
        Entry { deploy_path: Some(self.site().display().to_string()), ..entry(steps) }
    }

    async fn order(&mut self, made: &Made) {
        let order = self.server.order(&execution_id(), &self.entry(made), 60_000);
        self.peer.as_mut().unwrap().send(&run(order)).await;
    }

    /// Serves what is asked for until the end, or until `enough` of the ranges came; `spoil` may change what is sent.
    async fn serve(&mut self, made: &Made, spoil: impl Fn(&Part, &mut Vec<u8>), enough: Option<usize>) -> Delivered {
        let mut delivered = Delivered::default();
        let peer = self.peer.as_mut().unwrap();
        loop {
            match peer.next().await.expect("the agent hung up") {
                Got::Message(ToServer::Fetch { channel, offset, part, .. }) => {
                    let mut bytes = made.part(&part);
                    spoil(&part, &mut bytes);
                    let from = usize::try_from(offset).unwrap();
                    let limit = enough.filter(|_| matches!(part, Part::Ranges(_)));
                    let to = limit.map_or(bytes.len(), |limit| limit.min(bytes.len()));
                    for (number, piece) in bytes[from..to].chunks(50_000).enumerate() {
                        let at = from + number * 50_000;
                        peer.send_artifact(channel, at as u64, piece, at + piece.len() == bytes.len()).await;
                    }
                    delivered.moved += to - from;
                    delivered.asked.push(part);
                }
                Got::Message(ToServer::FetchAck { offset, .. }) => {
                    let is_enough = enough.is_some_and(|enough| offset == enough as u64);
                    if is_enough && matches!(delivered.asked.last(), Some(Part::Ranges(_))) {
                        return delivered;
                    }
                }
                Got::Data(header, body) => {
                    delivered.log.extend(&body);
                    let offset = header.offset + body.len() as u64;
                    peer.send(&ToAgent::OutputAck { channel: header.channel, offset }).await;
                }
                Got::Message(ToServer::Finished(finished)) => {
                    let (execution_id, attempt) = (finished.execution_id.clone(), finished.attempt);
                    peer.send(&ToAgent::Archived { execution_id, attempt }).await;
                    delivered.finished = Some(*finished);
                    return delivered;
                }
                Got::Message(_) => {}
            }
        }
    }

    /// Delivers a version, which has to go well.
    async fn deliver(&mut self, made: &Made, spoil: impl Fn(&Part, &mut Vec<u8>)) -> Delivered {
        self.order(made).await;
        let delivered = self.serve(made, spoil, None).await;
        self.check(made, &delivered);
        delivered
    }

    /// Whether the release in use is this version.
    fn check(&self, made: &Made, delivered: &Delivered) {
        let finished = delivered.finished.as_ref().unwrap();
        assert_eq!((finished.state, finished.reason.as_deref()), (ExecutionState::Succeeded, None));
        for (name, content) in &made.files {
            assert!(fs::read(self.site().join("current").join(name)).unwrap() == *content, "{name} is another");
        }
    }
}

fn as_it_is(_: &Part, _: &mut Vec<u8>) {}

#[tokio::test]
async fn only_what_changed_is_moved() {
    let mut scene = Scene::new().await;
    let (first, second) = versions();
    let delivered = scene.deliver(&first, as_it_is).await;
    assert_eq!(delivered.asked, [Part::Whole], "there is nothing to take from");
    let delivered = scene.deliver(&second, as_it_is).await;
    assert!(matches!(&delivered.asked[..], [Part::Index, Part::Ranges(_)]), "{:?}", delivered.asked);
    assert!(delivered.moved * 4 < second.artifact.len(), "{} of {}", delivered.moved, second.artifact.len());
    assert!(
        delivered.text().contains("fetch: verified; moved ") && delivered.text().contains(" MB, the rest was here")
    );
    // Back to the first, whose release is kept and whose artifact is in the cache.
    assert_eq!(scene.deliver(&first, as_it_is).await.asked, []);
}

#[tokio::test]
async fn nothing_but_the_index_is_moved_for_the_same_content() {
    let mut scene = Scene::new().await;
    let (first, _) = versions();
    scene.deliver(&first, as_it_is).await;
    // The same files in another order: another artifact of the same chunks.
    let mut files = first.files.clone();
    files.reverse();
    let again = Made::of(&files);
    let delivered = scene.deliver(&again, as_it_is).await;
    assert_eq!(delivered.asked, [Part::Index]);
}

#[tokio::test]
async fn what_was_changed_on_the_host_is_fetched() {
    let mut scene = Scene::new().await;
    let (first, second) = versions();
    scene.deliver(&first, as_it_is).await;
    let current = scene.site().join("current");
    fs::write(current.join("b.txt"), "of the same\n").unwrap();
    fs::remove_file(current.join("same.bin")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", current.join("same.bin")).unwrap();
    let delivered = scene.deliver(&second, as_it_is).await;
    assert!(!delivered.is_whole());
    assert!(delivered.moved > 500_000, "{}", delivered.moved);
}

#[tokio::test]
async fn whatever_is_wrong_with_index_or_frames_the_whole_is_fetched() {
    let (first, second) = versions();
    let other = IndexWriter::new().unwrap().finish(0, Digest::of(b"")).unwrap().unwrap();
    let mut scene = Scene::new().await;
    scene.deliver(&first, as_it_is).await;
    // Another index than the one that was signed.
    let delivered = scene
        .deliver(&second, |part, bytes| {
            if *part == Part::Index {
                bytes[10] ^= 1;
            }
        })
        .await;
    assert_eq!(delivered.asked, [Part::Index, Part::Whole]);
    // One of another length: nobody waits for what never comes.
    for longer in [false, true] {
        let mut scene = Scene::new().await;
        scene.deliver(&first, as_it_is).await;
        let delivered = scene
            .deliver(&second, |part, bytes| {
                if *part == Part::Index {
                    bytes.resize(if longer { bytes.len() + 1 } else { bytes.len() - 1 }, 0);
                }
            })
            .await;
        assert_eq!(delivered.asked, [Part::Index, Part::Whole], "{longer}");
    }
    // One that was signed and lies.
    let mut scene = Scene::new().await;
    scene.deliver(&first, as_it_is).await;
    let liar = Made { index: other, ..versions().1 };
    assert_eq!(scene.deliver(&liar, as_it_is).await.asked, [Part::Index, Part::Whole]);
    // Frames that are not what it says.
    let mut scene = Scene::new().await;
    scene.deliver(&first, as_it_is).await;
    let delivered = scene
        .deliver(&second, |part, bytes| {
            if matches!(part, Part::Ranges(_)) {
                bytes.iter_mut().step_by(1_000).for_each(|byte| *byte ^= 1);
            }
        })
        .await;
    assert!(matches!(&delivered.asked[..], [Part::Index, Part::Ranges(_), Part::Whole]), "{:?}", delivered.asked);
}

#[tokio::test]
async fn a_server_that_has_no_index_any_more_sends_the_whole() {
    let mut scene = Scene::new().await;
    let (first, second) = versions();
    scene.deliver(&first, as_it_is).await;
    scene.order(&second).await;
    let peer = scene.peer.as_mut().unwrap();
    loop {
        if let Got::Message(ToServer::Fetch { channel, part: Part::Index, .. }) = peer.next().await.unwrap() {
            peer.send(&ToAgent::ArtifactRefused { channel, reason: "there is none".to_owned() }).await;
            break;
        }
    }
    let delivered = scene.serve(&second, as_it_is, None).await;
    assert_eq!(delivered.asked, [Part::Whole]);
    scene.check(&second, &delivered);
}

#[tokio::test]
async fn an_agent_that_is_killed_goes_on_with_what_it_has() {
    let mut scene = Scene::new().await;
    let (first, _) = versions();
    scene.deliver(&first, as_it_is).await;
    // Half of it is new.
    let mut files = first.files.clone();
    files[1].1 = noise(77, 3_000_000);
    let second = Made::of(&files);
    scene.order(&second).await;
    let before = scene.serve(&second, as_it_is, Some(1_000_000)).await;
    assert!(matches!(&before.asked[..], [Part::Index, Part::Ranges(_)]), "{:?}", before.asked);
    scene.agent.take().unwrap().kill().await.unwrap();
    scene.peer = None;
    scene.agent = Some(agent(&scene.bench.data_dir(), None));
    let (peer, _) = scene.server.open(|_| (true, 0)).await;
    scene.peer = Some(peer);
    let after = scene.serve(&second, as_it_is, None).await;
    assert!(matches!(&after.asked[..], [Part::Ranges(_)]), "the index is here: {:?}", after.asked);
    assert!(after.moved < 2_400_000, "{} came again", after.moved);
    scene.check(&second, &after);
    let left = fs::read_dir(scene.bench.data_dir().join("artifacts")).unwrap();
    let left: Vec<String> = left.map(|item| item.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(left.iter().all(|name| !name.ends_with(".part") && !name.ends_with(".index")), "{left:?}");
}
