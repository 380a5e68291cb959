//! SEQPACKET sockets that carry descriptors.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors that one message carries. The kernel's own limit is 253 (SCM_MAX_FD, unix(7)).
pub const MAX_FDS: usize = 32;

/// A connected pair of SEQPACKET sockets, both close-on-exec.
pub fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one message. Never raises SIGPIPE.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[RawFd], flags: MsgFlags) -> nix::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    loop {
        let sent = sendmsg::<()>(
            socket.as_fd().as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags | MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

/// Receives one message into `buffer`. Returns its length, 0 at end-of-file, and the descriptors, close-on-exec.
/// A message that does not fit is `EMSGSIZE`; its descriptors are closed.
pub fn recv(socket: impl AsFd, buffer: &mut [u8], flags: MsgFlags) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    loop {
        let mut io = [IoSliceMut::new(buffer)];
        let received =
            recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut io, Some(&mut control), flags | MsgFlags::MSG_CMSG_CLOEXEC);
        let message = match received {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just installed these descriptors for this process, nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.flags.contains(MsgFlags::MSG_TRUNC) || message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(Errno::EMSGSIZE);
        }
        return Ok((message.bytes, fds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_carries_descriptors() {
        let (a, b) = pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(&a, b"hello", &[write.as_raw_fd()], MsgFlags::empty()).unwrap();
        let mut buffer = [0; 16];
        let (n, mut fds) = recv(&b, &mut buffer, MsgFlags::empty()).unwrap();
        assert_eq!(&buffer[..n], b"hello");
        std::fs::File::from(fds.remove(0)).write_all(b"x").unwrap();
        drop(write);
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(a);
        assert_eq!(recv(&b, &mut buffer, MsgFlags::empty()).unwrap().0, 0);
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let (a, b) = pair().unwrap();
        send(&a, &[0; 100], &[], MsgFlags::empty()).unwrap();
        assert_eq!(recv(&b, &mut [0; 10], MsgFlags::empty()).unwrap_err(), Errno::EMSGSIZE);
    }
}
