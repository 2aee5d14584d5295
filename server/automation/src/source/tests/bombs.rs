//! Archives that nobody makes by mistake: devices, and files that grow on their way.

use std::io::Write as _;

use tar::EntryType;
use zip::write::SimpleFileOptions;

use super::uploads::{gz, pack, tar_of, zip_of};
use super::*;

/// Writes the mode of the only member of a zip file, kind included, where the library writes but permissions.
fn with_mode(mut zip: Vec<u8>, mode: u16) -> Vec<u8> {
    let directory = zip.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
    zip[directory + 40..directory + 42].copy_from_slice(&mode.to_le_bytes());
    zip
}

/// A zip file of one member with so many zeros.
fn zip_of_zeros(length: u64) -> Vec<u8> {
    zip_of(|writer| {
        let options = SimpleFileOptions::default().compression_level(Some(1));
        writer.start_file("zeros", options).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), length), writer).unwrap();
    })
}

/// Memory that this process had at most, in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Bytes on the disk below a folder.
fn on_disk(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let items = std::fs::read_dir(folder).into_iter().flatten().map(|item| item.unwrap().path());
    items.map(|path| if path.is_dir() { on_disk(&path) } else { path.metadata().unwrap().blocks() * 512 }).sum()
}

#[tokio::test]
async fn devices_are_refused_in_every_form() {
    let scene = Scene::new();
    for (kind, reason) in [
        (EntryType::Char, "it is a device"),
        (EntryType::Block, "it is a device"),
        (EntryType::Fifo, "it is a named pipe"),
    ] {
        let tar = tar_of(&[("x", kind, b"")]);
        for bytes in [tar.clone(), gz(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
            let error = pack(&scene, &bytes).await.unwrap_err();
            assert_eq!(error, SourceError::Member { name: "x".to_owned(), reason });
        }
    }
    let plain = || zip_of(|writer| writer.start_file("x", SimpleFileOptions::default()).unwrap());
    // Character device, block device, named pipe, socket.
    for mode in [0o020_644, 0o060_644, 0o010_644, 0o140_644] {
        let error = pack(&scene, &with_mode(plain(), mode)).await.unwrap_err();
        let reason = "it is no file, folder or symbolic link";
        assert_eq!(error, SourceError::Member { name: "x".to_owned(), reason }, "{mode:o}");
    }
    assert_eq!(scene.artifacts(), 0);
    pack(&scene, &with_mode(plain(), 0o100_644)).await.unwrap();
}

/// A tar stream of one member that is as long as said and holds nothing but zeros, compressed.
fn zeros(kind: EntryType, length: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_entry_type(kind);
    header.set_size(length);
    header.set_mode(0o644);
    header.set_cksum();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(header.as_bytes()).unwrap();
    let piece = vec![0; 1 << 20];
    for _ in 0..length >> 20 {
        encoder.write_all(&piece).unwrap();
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn bombs_are_refused_before_they_go_off() {
    let scene = Scene::new();
    // The length alone is enough.
    let error = pack(&scene, &zeros(EntryType::Regular, 2 << 30)).await.unwrap_err();
    assert_eq!(error, SourceError::Bomb { ratio: 200 });
    // A name of many bytes would be kept in memory.
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let error = pack(&scene, &zeros(kind, 64 << 20)).await.unwrap_err();
        assert!(error.to_string().contains("what describes a member is too long"), "{kind:?}: {error}");
    }
    // A directory of many members of the same bytes.
    let limits = Limits { members_max: 100, ..Limits::default() };
    let scene = Scene::with(limits);
    let many = zip_of(|writer| {
        for number in 0..200 {
            writer.start_file(number.to_string(), SimpleFileOptions::default()).unwrap();
        }
    });
    assert_eq!(pack(&scene, &many).await.unwrap_err(), SourceError::TooMany { members_max: 100 });
    assert_eq!(scene.artifacts(), 0);
}

#[tokio::test]
async fn what_grows_on_its_way_takes_bounded_room() {
    let scene = Scene::new();
    // Each member is small enough, and their sum is not: members of gzip in a row are one stream.
    let zeros = gz(&vec![0; 64 << 20]);
    let mut bomb = Vec::new();
    for number in 0..20 {
        let mut header = tar::Header::new_gnu();
        header.set_path(format!("zeros-{number}")).unwrap();
        header.set_size(64 << 20);
        header.set_mode(0o644);
        header.set_cksum();
        bomb.extend(gz(header.as_bytes()));
        bomb.extend(&zeros);
    }
    assert!(bomb.len() < 8 << 20, "{} bytes are no bomb", bomb.len());
    let before = peak_mib();
    assert_eq!(pack(&scene, &bomb).await.unwrap_err(), SourceError::Bomb { ratio: 200 });
    // What a zip file says of its members counts before any of them is read.
    let zip = zip_of_zeros(1200 << 20);
    assert!(zip.len() < 16 << 20, "{} bytes are no bomb", zip.len());
    assert_eq!(pack(&scene, &zip).await.unwrap_err(), SourceError::Bomb { ratio: 200 });
    // One that says less than it holds is not read beyond that.
    let mut liar = zip_of_zeros(256 << 20);
    let length = u32::try_from(256 << 20).unwrap().to_le_bytes();
    let directory = liar.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
    assert_eq!(liar[directory + 24..directory + 28], length);
    liar[directory + 24..directory + 28].copy_from_slice(&7_u32.to_le_bytes());
    let error = pack(&scene, &liar).await.unwrap_err();
    assert!(error.to_string().contains("larger than its declared uncompressed size"), "{error}");
    assert_eq!(scene.artifacts(), 0);
    let left = on_disk(&scene.folder.path().join("artifacts"));
    assert!(left < 1 << 20, "{left} bytes are left on the disk");
    let more = peak_mib() - before;
    assert!(more < 200, "{more} MiB of memory for a bomb of a few");
}
