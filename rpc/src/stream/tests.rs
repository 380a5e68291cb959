use super::*;
use nix::sys::epoll::EpollFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// Both ends of a connection, and the directory of its socket.
async fn pair() -> (Stream, Stream, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Stream::connect(&path).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    (client, accepted.try_into().unwrap(), dir)
}

/// What event loops of this process are asked to tell of a descriptor (proc_pid_fdinfo(5)), once for each descriptor
/// that a loop has of itself.
fn asked(fd: &impl AsRawFd) -> Vec<EpollFlags> {
    let fd = fd.as_raw_fd().to_string();
    let loops = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let infos = loops.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let lines: Vec<String> = infos.flat_map(|info| info.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter(|words| matches!(words[..], ["tfd:", of, "events:", ..] if of == fd))
        .map(|words| EpollFlags::from_bits_truncate(u32::from_str_radix(words[3], 16).unwrap() as i32))
        .collect()
}

#[tokio::test]
async fn the_event_loop_is_asked_for_room_only_while_there_is_none() {
    let (mut client, mut server, _dir) = pair().await;
    for end in [&client, &server] {
        let asked = asked(&end.socket);
        let reads = |what: &EpollFlags| what.contains(EpollFlags::EPOLLIN) && !what.contains(EpollFlags::EPOLLOUT);
        assert!(!asked.is_empty() && asked.iter().all(reads), "{asked:?}");
    }
    // Until there is no room, and then on as soon as there is some.
    let mut written = 0;
    while tokio::time::timeout(std::time::Duration::from_millis(50), client.write(&[7; 1 << 16])).await.is_ok() {
        written += 1;
    }
    assert!(written > 0);
    let full = asked(client.full.as_ref().unwrap());
    assert!(!full.is_empty() && full.iter().all(|what| what.contains(EpollFlags::EPOLLOUT)), "{full:?}");
    let drained = async {
        let mut buffer = vec![0; 1 << 20];
        loop {
            assert!(server.read(&mut buffer).await.unwrap() > 0);
        }
    };
    tokio::select! {
        () = drained => {}
        result = client.write_all(b"more") => result.unwrap(),
    }
    assert!(client.full.is_none());
}

#[tokio::test]
async fn everything_arrives_in_order_through_a_socket_that_is_full_all_the_time() {
    let (mut client, mut server, _dir) = pair().await;
    let sent: Vec<u8> = (0..8u32 << 20).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        for part in sent.chunks(300_000) {
            let (a, b) = part.split_at(part.len() / 3);
            let n = client.write_vectored(&[IoSlice::new(a), IoSlice::new(b)]).await.unwrap();
            client.write_all(&part[n..]).await.unwrap();
        }
        client.shutdown().await.unwrap();
        client
    });
    let mut received = Vec::new();
    server.read_to_end(&mut received).await.unwrap();
    assert!(received == expected, "{} of {} bytes", received.len(), expected.len());
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn the_end_of_a_peer_is_seen_behind_its_last_bytes() {
    let (mut client, mut server, _dir) = pair().await;
    client.write_all(b"last").await.unwrap();
    drop(client);
    let mut buffer = [0; 64];
    assert_eq!(server.read(&mut buffer).await.unwrap(), 4);
    assert_eq!(server.read(&mut buffer).await.unwrap(), 0);
    assert!(server.write(b"x").await.is_err());
}
