//! bpftrace with the same job, as far as its language allows.

use std::process::Command;

use ::pgleak::session::prepare;
use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

use super::{
    Working,
    plan::{AllocSet, Place},
    tool::Tool,
};

struct Bpftrace {
    tool: Tool,
    _script: NamedTempFile,
}

/// What the script says when its first and its last probe are set: whichever bpftrace sets first.
const MARKS: [&str; 2] = ["in front", "behind"];

pub(super) fn begin(pid: u32) -> Result<Box<dyn Working>> {
    let file = NamedTempFile::with_suffix(".bt")?;
    std::fs::write(file.path(), script(&AllocSet::of(&prepare(pid, None)?)?))?;
    let mut command = Command::new("bpftrace");
    command
        .args(["--unsafe", "-B", "none", "-p", &pid.to_string()])
        .arg(file.path())
        .env("BPFTRACE_MAP_KEYS_MAX", "1000000");
    let tool = Tool::start("bpftrace", &mut command)?;
    for mark in MARKS {
        tool.wait_for(mark).context("its probes were not set")?;
    }
    Ok(Box::new(Bpftrace { tool, _script: file }))
}

impl Working for Bpftrace {
    fn end(self: Box<Self>) -> Result<Option<u64>> {
        // Otherwise it prints all that its maps hold.
        self.tool.end(Some(libc::SIGKILL))?;
        Ok(None)
    }
}

/// AllocSets only: its language has no way to a chunk's context when the chunk is freed.
fn script(set: &AllocSet) -> String {
    let [in_front, behind] = MARKS;
    let binary = set.binary.display();
    let place = |place: &Place| format!("{binary}:{:#x}", place.entry);
    let [alloc, free, realloc, reset, delete] =
        [&set.alloc, &set.free, &set.realloc, &set.reset, &set.delete].map(place);
    let (size, freed) = (set.alloc.size_arg, set.free.pointer_arg);
    let (old, new_size) = (set.realloc.pointer_arg, set.realloc.size_arg);
    format!(
        "interval:ms:100 {{ printf(\"{in_front}\\n\"); }}\n\
         uprobe:{alloc} {{ @size[tid] = arg{size}; }}\n\
         uretprobe:{alloc} /@size[tid]/ {{ @bytes[retval] = @size[tid]; @stack[retval] = ustack(127); delete(@size[tid]); }}\n\
         uprobe:{free} {{ delete(@bytes[arg{freed}]); delete(@stack[arg{freed}]); }}\n\
         uprobe:{realloc} {{ @new[tid] = arg{new_size}; delete(@bytes[arg{old}]); delete(@stack[arg{old}]); }}\n\
         uretprobe:{realloc} /@new[tid]/ {{ @bytes[retval] = @new[tid]; @stack[retval] = ustack(127); delete(@new[tid]); }}\n\
         uprobe:{reset} {{ @resets[arg0] = count(); }}\n\
         uprobe:{delete} {{ @resets[arg0] = count(); }}\n\
         interval:ms:100 {{ printf(\"{behind}\\n\"); }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_probes_first_instructions_with_their_arguments() {
        let script = script(&AllocSet::made_up());
        for line in [
            "uprobe:/srv/postgres:0x100 { @size[tid] = arg1; }",
            "uprobe:/srv/postgres:0x200 { delete(@bytes[arg0]); delete(@stack[arg0]); }",
            "uprobe:/srv/postgres:0x300 { @new[tid] = arg1; delete(@bytes[arg0]); delete(@stack[arg0]); }",
            "uprobe:/srv/postgres:0x500 { @resets[arg0] = count(); }",
        ] {
            assert!(script.lines().any(|found| found == line), "{line} is not in\n{script}");
        }
        assert!(script.lines().next().is_some_and(|line| line.contains("in front")));
        assert!(script.lines().last().is_some_and(|line| line.contains("behind")));
    }
}
