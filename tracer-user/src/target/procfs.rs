//! The text of `/proc/PID/stat`, `status`, `cmdline`: bytes to values, no I/O.

use super::Memory;

/// What `/proc/PID/stat` says, as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// State letter: `R`, `S`, `D`, `Z` …
    pub state: u8,
    /// Parent.
    pub parent: u32,
    /// `PF_*` of the kernel.
    pub flags: u32,
    /// CPU time in user mode, in clock ticks, of all threads.
    pub user_ticks: u64,
    /// CPU time in the kernel, in clock ticks, of all threads.
    pub system_ticks: u64,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Where its arguments begin, which a server writes its title over; `None` without the privilege to see it.
    pub arguments_at: Option<u64>,
}

impl Stat {
    /// Whether the process has ended and only waits to be collected.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }

    /// Whether it is a thread of the kernel: `PF_KTHREAD`, include/linux/sched.h.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & 0x0020_0000 != 0
    }
}

/// Parses `/proc/PID/stat` (proc_pid_stat(5)). The second field is the program's name and may
/// hold blanks and parentheses, so fields are counted from the last `)`.
pub(super) fn parse_stat(text: &[u8]) -> Option<Stat> {
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let rest = str::from_utf8(text.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of these is field 3 of the manual page.
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        state: *field(3)?.as_bytes().first()?,
        parent: field(4)?.parse().ok()?,
        flags: field(9)?.parse().ok()?,
        user_ticks: field(14)?.parse().ok()?,
        system_ticks: field(15)?.parse().ok()?,
        start_ticks: field(22)?.parse().ok()?,
        arguments_at: field(48).and_then(|at| at.parse().ok()).filter(|at| *at != 0),
    })
}

/// How system calls of a process are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// Not at all.
    Disabled,
    /// Only read, write, exit and sigreturn are allowed.
    Strict,
    /// A BPF program decides.
    Filter,
}

/// What `/proc/PID/status` says, as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The process that this is a thread of; its own pid for a process.
    pub thread_group: u32,
    /// Real user id.
    pub uid: u32,
    /// Its pid in its own, innermost pid namespace: what it calls itself.
    pub inner_pid: u32,
    /// Resident memory; `None` for kernel threads and processes that have ended.
    pub memory: Option<Memory>,
    /// `None` on a kernel without seccomp.
    pub seccomp: Option<Seccomp>,
}

/// The memory in `/proc/PID/status`, and nothing else of it; `None` where there is none.
pub(super) fn parse_memory(text: &[u8]) -> Option<Memory> {
    let mut memory = [None; 4];
    for line in text.split(|byte| *byte == b'\n') {
        let (field, rest) = match line {
            [b'R', b's', b's', b'A', rest @ ..] => (0, rest),
            [b'R', b's', b's', b'F', rest @ ..] => (1, rest),
            [b'R', b's', b's', b'S', rest @ ..] => (2, rest),
            [b'V', b'm', b'S', b'w', rest @ ..] => (3, rest),
            _ => continue,
        };
        let digits = rest.iter().filter(|byte| byte.is_ascii_digit());
        let kib =
            digits.fold(0_u64, |kib, digit| kib.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
        memory[field] = Some(kib.saturating_mul(1024));
    }
    let [rss_anon, rss_file, rss_shmem, swap] = memory;
    let or_none = |bytes: Option<u64>| bytes.unwrap_or(0);
    let (rss_file, rss_shmem) = (or_none(rss_file), or_none(rss_shmem));
    Some(Memory { rss_anon: rss_anon?, rss_file, rss_shmem, swap: or_none(swap) })
}

/// Parses `/proc/PID/status` (proc_pid_status(5)).
pub(super) fn parse_status(text: &str) -> Option<Status> {
    let value =
        |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    let bytes = |key| -> Option<u64> {
        value(key)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let thread_group = value("Tgid")?.parse().ok()?;
    Some(Status {
        thread_group,
        uid: value("Uid")?.split_ascii_whitespace().next()?.parse().ok()?,
        inner_pid: value("NSpid")
            .and_then(|pids| pids.split_ascii_whitespace().last()?.parse().ok())
            .unwrap_or(thread_group),
        memory: bytes("RssAnon").map(|rss_anon| Memory {
            rss_anon,
            rss_file: bytes("RssFile").unwrap_or(0),
            rss_shmem: bytes("RssShmem").unwrap_or(0),
            swap: bytes("VmSwap").unwrap_or(0),
        }),
        seccomp: match value("Seccomp") {
            Some("0") => Some(Seccomp::Disabled),
            Some("1") => Some(Seccomp::Strict),
            Some("2") => Some(Seccomp::Filter),
            _ => None,
        },
    })
}

/// Turns `/proc/PID/cmdline` into one line: arguments parted by blanks. A server process pads
/// its title with NULs or blanks up to the length of its first command line.
pub(super) fn parse_cmdline(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches(['\0', ' ', '\n']);
    text.replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_from_the_last_parenthesis() {
        let line = b"9606 (po) S 1 (x)) S 9600 9606 9606 0 -1 4194624 270 0 0 0 12 34 0 0 20 0 1 0 \
                     134250 231006208 2184 18446744073709551615 94 94 140 0 0 0 0 19935232 536939014 0 0 0 17 1 0 0 0 0 0 \
                     94901970890000 94901970900000 94901980000000 140722000000640 140722000000700";
        let stat = parse_stat(line).expect("a whole line");
        assert_eq!(
            stat,
            Stat {
                state: b'S',
                parent: 9600,
                flags: 4_194_624,
                user_ticks: 12,
                system_ticks: 34,
                start_ticks: 134_250,
                arguments_at: Some(140_722_000_000_640),
            }
        );
        assert!(!stat.has_ended() && !stat.is_kernel_thread());
    }

    #[test]
    fn kernel_threads_and_zombies_are_told() {
        let kthreadd = parse_stat(
            b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 3 0 0 18446744073709551615",
        );
        assert!(kthreadd.is_some_and(|stat| stat.is_kernel_thread()));
        let zombie = parse_stat(b"7 (sh) Z 1 0 0 0 -1 4194316 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0");
        assert!(zombie.is_some_and(|stat| stat.has_ended()));
    }

    #[test]
    fn a_cut_stat_is_nothing() {
        assert_eq!(parse_stat(b"9606 (postgres) S 9600"), None);
        assert_eq!(parse_stat(b"9606 postgres"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn status_of_a_backend_in_a_container() {
        let text = "Name:\tpostgres\nUmask:\t0077\nState:\tS (sleeping)\nTgid:\t9602\nNgid:\t0\n\
                    Pid:\t9602\nPPid:\t9600\nUid:\t103\t103\t103\t103\nNSpid:\t9602\t33\n\
                    VmRSS:\t  8424 kB\nRssAnon:\t     760 kB\nRssFile:\t    5732 kB\n\
                    RssShmem:\t    1932 kB\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(
            parse_status(text),
            Some(Status {
                thread_group: 9602,
                uid: 103,
                inner_pid: 33,
                memory: Some(Memory {
                    rss_anon: 760 * 1024,
                    rss_file: 5732 * 1024,
                    rss_shmem: 1932 * 1024,
                    swap: 0
                }),
                seccomp: Some(Seccomp::Filter),
            })
        );
    }

    #[test]
    fn status_without_memory_is_a_kernel_thread_or_an_ended_process() {
        let status = parse_status("Name:\tkthreadd\nTgid:\t2\nUid:\t0\t0\t0\t0\nSeccomp:\t0\n");
        assert_eq!(status.map(|status| status.memory), Some(None));
    }

    #[test]
    fn a_title_loses_its_padding_and_a_command_line_its_nuls() {
        assert_eq!(parse_cmdline(b"postgres: walwriter \0\0\0\0"), "postgres: walwriter");
        assert_eq!(parse_cmdline(b"/usr/bin/postgres\0-D\0/data\0"), "/usr/bin/postgres -D /data");
        assert_eq!(parse_cmdline(b""), "");
    }
}
