//! Archives as people make them, and as nobody should.

use std::io::Write as _;

use tar::EntryType;
use zip::write::SimpleFileOptions;

use super::*;

pub(super) fn tar_of(members: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_000_000_000);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn zip_of(build: impl FnOnce(&mut zip::ZipWriter<std::io::Cursor<Vec<u8>>>)) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    build(&mut writer);
    writer.finish().unwrap().into_inner()
}

/// Has bytes packed as if they had been uploaded.
pub(super) async fn pack(scene: &Scene, bytes: &[u8]) -> Result<Upload, SourceError> {
    let file = scene.folder.path().join("upload");
    std::fs::write(&file, bytes).unwrap();
    scene.sources.pack_upload(file, CancellationToken::new()).await
}

pub(super) fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn every_form_gives_the_same_artifact() {
    let scene = Scene::new();
    let tar = tar_of(&[
        ("./", EntryType::Directory, b""),
        ("./a/", EntryType::Directory, b""),
        ("./a/x.sh", EntryType::Regular, b"x\n"),
    ]);
    let forms = [
        (tar.clone(), Format::Tar),
        (gz(&tar), Format::TarGz),
        // Several members of gzip in a row are one stream.
        ([gz(&tar[..700]), gz(&tar[700..])].concat(), Format::TarGz),
        (zstd::encode_all(&tar[..], 1).unwrap(), Format::TarZst),
    ];
    let mut digests = Vec::new();
    for (bytes, format) in forms {
        let packed = pack(&scene, &bytes).await.unwrap();
        assert_eq!((packed.format, packed.files), (format, 1));
        digests.push(packed.digest);
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    let inside = [("a/".to_owned(), 0o755, String::new()), ("a/x.sh".to_owned(), 0o755, "x\n".to_owned())];
    assert_eq!(scene.members(digests[0]), inside);
}

#[tokio::test]
async fn a_zip_file_keeps_programs_and_links() {
    let scene = Scene::new();
    let zip = zip_of(|writer| {
        let mode = |mode| SimpleFileOptions::default().unix_permissions(mode);
        writer.add_directory("bin/", mode(0o755)).unwrap();
        writer.start_file("bin/run", mode(0o755)).unwrap();
        writer.write_all(&b"run ".repeat(10_000)).unwrap();
        writer.start_file("é.txt", mode(0o600)).unwrap();
        writer.write_all(b"text").unwrap();
        writer.add_symlink("link", "bin/run", mode(0o777)).unwrap();
    });
    let packed = pack(&scene, &zip).await.unwrap();
    assert_eq!((packed.format, packed.files), (Format::Zip, 3));
    let found = scene.members(packed.digest);
    let names: Vec<(&str, u32)> = found.iter().map(|(name, mode, _)| (name.as_str(), *mode)).collect();
    assert_eq!(names, [("bin/", 0o755), ("bin/run", 0o755), ("é.txt", 0o644), ("link", 0o777)]);
    assert_eq!((found[1].2.len(), found[3].2.as_str()), (40_000, "-> bin/run"));
}

#[tokio::test]
async fn links_whose_target_could_not_be_are_refused() {
    let scene = Scene::new();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "far", "a/".repeat(3000)).unwrap();
    let error = pack(&scene, &builder.into_inner().unwrap()).await.unwrap_err();
    let reason = "it is a link whose target is longer than 4000 bytes";
    assert_eq!(error, SourceError::Member { name: "far".to_owned(), reason });
    let bytes = zip_of(|writer| writer.add_symlink("void", "", SimpleFileOptions::default()).unwrap());
    let error = pack(&scene, &bytes).await.unwrap_err();
    assert!(matches!(&error, SourceError::Member { name, .. } if name == "void"), "{error}");
}

#[tokio::test]
async fn a_part_stands_beside_large_files_that_are_left_out() {
    let scene = Scene::new();
    let large = vec![7; 3 << 20];
    let tar = tar_of(&[
        ("before", EntryType::Regular, &large),
        ("a/x", EntryType::Regular, b"x\n"),
        ("behind", EntryType::Regular, &large),
    ]);
    let whole = pack(&scene, &tar).await.unwrap();
    let part = scene.sources.part(whole.digest, Some("a"), "shop.tar", CancellationToken::new()).await.unwrap();
    assert_eq!(scene.members(part.0).len(), 1);
}

#[tokio::test]
async fn members_of_a_zip_file_that_are_refused() {
    let scene = Scene::new();
    let named = |name: &str| {
        let name = name.to_owned();
        zip_of(move |writer| {
            // What the library would mend on its way is put in afterwards.
            writer.start_file("x".repeat(name.len()), SimpleFileOptions::default()).unwrap();
            writer.write_all(b"x").unwrap();
        })
    };
    let with_name = |name: &str| {
        let bytes = named(name);
        let (old, new) = ("x".repeat(name.len()).into_bytes(), name.as_bytes());
        let mut bytes = bytes;
        let places: Vec<usize> =
            bytes.windows(old.len()).enumerate().filter(|(_, part)| *part == old).map(|(at, _)| at).collect();
        // The first is in the local header, the last in the directory.
        for at in [places[0], places[places.len() - 1]] {
            bytes[at..at + new.len()].copy_from_slice(new);
        }
        bytes
    };
    for (name, expected) in [
        ("../../etc/x", "its name holds `..`"),
        ("/etc/passwd", "its name is an absolute path"),
        (r"dist\index.html", "its name has a backslash; parts of a name are divided by slashes"),
    ] {
        let error = pack(&scene, &with_name(name)).await.unwrap_err();
        assert_eq!(error, SourceError::Member { name: name.to_owned(), reason: expected });
    }
    let link = zip_of(|writer| writer.add_symlink("out", "/etc", SimpleFileOptions::default()).unwrap());
    let error = pack(&scene, &link).await.unwrap_err();
    assert!(error.to_string().contains("`out`: it is a link to an absolute path"), "{error}");
    let mut secret = zip_of(|writer| writer.start_file("secret", SimpleFileOptions::default()).unwrap());
    // The flag that says that a member is encrypted, in both places.
    let directory = secret.windows(4).position(|part| part == b"PK\x01\x02").unwrap();
    secret[6] |= 1;
    secret[directory + 8] |= 1;
    assert!(pack(&scene, &secret).await.unwrap_err().to_string().contains("`secret`: it is encrypted"));
    let good = with_name("a-good-name-of-a-file");
    let cut = pack(&scene, &good[..good.len() - 10]).await.unwrap_err();
    assert!(cut.to_string().starts_with("the archive cannot be read"), "{cut}");
    let mut spoiled = good;
    let at = spoiled.windows(21).position(|part| part == b"a-good-name-of-a-file").unwrap() + 21;
    spoiled[at] ^= 1;
    assert!(pack(&scene, &spoiled).await.is_err());
    assert_eq!(scene.artifacts(), 0);
}

/// Its members look like files with another name and other content.
#[tokio::test]
async fn sparse_files_of_every_form_are_refused() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("holes")).unwrap();
    file.set_len(4 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 2 << 20).unwrap();
    file.sync_all().unwrap();
    for form in [&["--format=gnu"][..], &["--format=posix"], &["--format=posix", "--sparse-version=0.1"]] {
        let mut tar = Command::new("tar");
        tar.args(["--create", "--file=-", "--sparse"]).args(form).arg("--directory").arg(folder.path()).arg("holes");
        let made = tar.output().unwrap();
        assert!(made.status.success() && made.stdout.len() < 1 << 20, "{form:?}: it has no holes");
        let error = pack(&scene, &made.stdout).await.unwrap_err();
        assert!(
            error.to_string().contains("it is a sparse file; make the archive without --sparse"),
            "{form:?}: {error}"
        );
    }
    assert_eq!(scene.artifacts(), 0);
}

#[tokio::test]
async fn what_breaks_off_or_is_damaged_is_refused() {
    let scene = Scene::new();
    let tar = tar_of(&[("x", EntryType::Regular, &b"incompressible? ".repeat(5_000))]);
    let gz = gz(&tar);
    let zst = zstd::encode_all(&tar[..], 1).unwrap();
    for bytes in [&tar[..5000], &gz[..gz.len() / 2], &zst[..zst.len() / 2], &zip_of(|_| {}), &tar_of(&[]), &b""[..]] {
        let error = pack(&scene, bytes).await.unwrap_err();
        assert!(matches!(error, SourceError::Damaged(_) | SourceError::Member { .. }), "{error}");
    }
    for (start, name) in [(&b"BZh9"[..], "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"7z\xbc\xaf", "7z"), (b"Rar!", "rar")] {
        let error = pack(&scene, &[start, &[7; 600]].concat()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("it is {name}; tar, tar.gz, tar.zst and zip are taken")), "{error}");
    }
    assert_eq!(scene.artifacts(), 0);
}

#[tokio::test]
async fn a_part_is_packed_once_and_only_what_is_there() {
    let scene = Scene::new();
    let tar = tar_of(&[
        ("a/x", EntryType::Regular, b"x"),
        ("a/b/y", EntryType::Regular, b"y"),
        ("ab", EntryType::Regular, b"z"),
    ]);
    let whole = pack(&scene, &tar).await.unwrap().digest;
    let part = async |path: &str| scene.sources.part(whole, Some(path), "shop.tar", CancellationToken::new()).await;
    let names = |digest| scene.members(digest).into_iter().map(|(name, _, _)| name).collect::<Vec<_>>();
    let (digest, _) = part("a").await.unwrap();
    assert_eq!(names(digest), ["x", "b/y"]);
    assert_eq!(part("/a/./").await.unwrap().0, digest);
    assert_eq!(names(part("a/b/y").await.unwrap().0), ["y"]);
    assert_eq!(part("/").await.unwrap().0, whole);
    let error = part("a/none").await.unwrap_err();
    assert_eq!(error, SourceError::NoPart { path: "a/none".to_owned(), archive: "shop.tar".to_owned() });
    assert!(part("../a").await.is_err());
}

#[tokio::test]
async fn packing_a_part_ends_when_nobody_waits_for_it() {
    let scene = Scene::new();
    let whole = pack(&scene, &tar_of(&[("a", EntryType::Regular, b"x")])).await.unwrap().digest;
    // A pipe in the place of the artifact: what it is made of has no end.
    let (folder, name) = (scene.folder.path().join("artifacts"), whole.to_string());
    let place = folder.join(&name[..2]).join(&name);
    std::fs::remove_file(&place).unwrap();
    nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut pipe = {
        use std::os::unix::fs::OpenOptionsExt as _;
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(&place).unwrap()
    };
    let mut header = tar::Header::new_gnu();
    header.set_path("a/x").unwrap();
    header.set_size(8 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    let begin = zstd::encode_all(&header.as_bytes()[..], 1).unwrap();
    pipe.write_all(&begin).unwrap();
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    let frame = zstd::encode_all(&noise.take(30_000).collect::<Vec<u8>>()[..], 1).unwrap();
    let sources = scene.sources.clone();
    let packing =
        tokio::spawn(async move { sources.part(whole, Some("a"), "shop.tar", CancellationToken::new()).await });
    let is_at_work = || std::fs::read_dir(folder.join("incoming")).unwrap().count() > 0;
    let mut sent = 0;
    let mut feed = |wanted: bool| {
        if is_at_work() == wanted {
            return true;
        }
        match pipe.write(&frame[sent..]) {
            Ok(count) => sent = (sent + count) % frame.len(),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        false
    };
    let reached = async |feed: &mut dyn FnMut() -> bool| {
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while !feed() {
            assert!(std::time::Instant::now() < until, "packing neither began nor ended");
            tokio::task::yield_now().await;
        }
    };
    reached(&mut || feed(true)).await;
    packing.abort();
    assert!(packing.await.unwrap_err().is_cancelled());
    reached(&mut || feed(false)).await;
    let made = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(made, 2, "nothing was made of it: there is the folder of the pipe, and that of what comes");
}
