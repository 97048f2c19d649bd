//! What pgleak and its watchdog say to each other: one packet a message.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// A message. Only `Keep` comes with a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// pgleak moves.
    Beat,
    /// The descriptor of a probe, and its number.
    Keep(u8),
    /// Close these, one after the other, and answer.
    OneByOne(Vec<u8>),
    /// Close these side by side, and answer.
    Together(Vec<u8>),
    /// They are closed.
    Done,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let (tag, numbers): (u8, &[u8]) = match self {
            Self::Beat => (b'b', &[]),
            Self::Keep(number) => (b'k', std::slice::from_ref(number)),
            Self::OneByOne(numbers) => (b'o', numbers),
            Self::Together(numbers) => (b't', numbers),
            Self::Done => (b'd', &[]),
        };
        std::iter::once(tag).chain(numbers.iter().copied()).collect()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [b'b'] => Some(Self::Beat),
            [b'k', number] => Some(Self::Keep(*number)),
            [b'o', numbers @ ..] => Some(Self::OneByOne(numbers.to_vec())),
            [b't', numbers @ ..] => Some(Self::Together(numbers.to_vec())),
            [b'd'] => Some(Self::Done),
            _ => None,
        }
    }
}

/// Whether to wait for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Yes,
    No,
}

/// Sends a message.
///
/// # Errors
/// If nobody is there, or if there is no room and it should not wait.
pub(super) fn send(
    socket: impl AsFd,
    packet: &Packet,
    descriptor: Option<BorrowedFd<'_>>,
    wait: Wait,
) -> io::Result<()> {
    let bytes = packet.bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
    }
    let flags = SendFlags::NOSIGNAL | if wait == Wait::No { SendFlags::DONTWAIT } else { SendFlags::empty() };
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Waits for a message; `None` when the other side is gone.
///
/// # Errors
/// What the kernel says, or something that is no message.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<(Packet, Option<OwnedFd>)>> {
    let mut bytes = [0; 1 + u8::MAX as usize];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Ok(None);
    }
    let packet = Packet::parse(&bytes[..received.bytes])
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no message of pgleak's"))?;
    Ok(Some((packet, descriptor)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_as_they_were_sent() -> io::Result<()> {
        let (here, there) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let packets = [
            Packet::Beat,
            Packet::Keep(200),
            Packet::OneByOne(vec![3, 1, 2]),
            Packet::Together((0..=254).collect()),
            Packet::Together(Vec::new()),
            Packet::Done,
        ];
        let file = std::fs::File::open("/proc/self/status")?;
        for packet in packets {
            let descriptor = matches!(packet, Packet::Keep(_)).then_some(file.as_fd());
            send(&here, &packet, descriptor, Wait::Yes)?;
            let (received, with) = receive(&there)?.expect("a message");
            assert_eq!(received, packet);
            assert_eq!(with.is_some(), descriptor.is_some());
            assert!(with.is_none_or(|with| with.as_raw_fd() != file.as_raw_fd()), "a duplicate");
        }
        // Room ends some time, and that is no reason to stand still.
        while send(&here, &Packet::Beat, None, Wait::No).is_ok() {}
        drop(here);
        while receive(&there)?.is_some() {}
        assert!(send(&there, &Packet::Done, None, Wait::Yes).is_err());
        Ok(())
    }
}
