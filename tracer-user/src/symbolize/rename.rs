//! Names for the frames of a finished capture, with debug files that its host did not have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use super::{
    advice::is_advice_on,
    files::{DebugFiles, FileNote},
    object::{Naming, ObjectNames, SymbolNote, about},
};
use crate::{
    addr::{BuildId, VirtAddr},
    elf::FunctionRange,
    profile::{Capture, Frame, Module, ModuleId},
};

/// Names the frames of a capture as far as `files` have the very builds that it was made with. What
/// the capture knows by DWARF stays, and nothing that has a name loses it.
pub fn name_again(mut capture: Capture, mut files: DebugFiles) -> Capture {
    let mut notes = Vec::new();
    for index in 0..capture.modules.len() {
        let module = &capture.modules[index];
        let Some(id) = module.build_id.clone() else { continue };
        let mut file_notes = Vec::new();
        let images = files.of_build(&id, &mut file_notes);
        if images.is_empty() && module.nameless > 0 {
            file_notes.push(FileNote::NotFound(id.clone()));
        }
        let path = module.path.clone();
        notes.extend(about(Path::new(&path), file_notes));
        if images.is_empty() {
            continue;
        }
        let module_id = ModuleId(u32::try_from(index).expect("ids were checked when it was read"));
        let functions = functions(&capture, module_id);
        let known = known(&capture, &id);
        let mut object =
            ObjectNames::read(Path::new(&path), &images, &functions, &known, &mut files, &mut notes);
        let frames = &mut capture.profile.frames;
        let own = frames.iter_mut().filter(|frame| frame.module == Some(module_id));
        let kept = name_frames(own, &mut object, &path, &mut notes);
        recount(&mut capture, module_id, &object, kept);
        drop_advice(&mut capture, index, &id);
    }
    for note in notes.iter().map(ToString::to_string) {
        // It may have been tried before.
        if !capture.notes.contains(&note) {
            capture.notes.push(note);
        }
    }
    capture
}

/// Names frames of one object; gives whether any kept a name that it had.
fn name_frames<'a>(
    frames: impl Iterator<Item = &'a mut Frame>,
    object: &mut ObjectNames,
    path: &str,
    notes: &mut Vec<SymbolNote>,
) -> bool {
    let mut kept = false;
    for frame in frames {
        let has_lines = frame.names.iter().any(|name| name.file.is_some());
        if has_lines {
            kept = true;
            continue;
        }
        let Naming { names, aliases, start } = object.name(frame.address, notes);
        if names.is_empty() {
            kept |= !frame.names.is_empty();
            continue;
        }
        frame.function_start = start.or(frame.function_start);
        let base = Path::new(path).file_name().unwrap_or(path.as_ref()).to_string_lossy().into_owned();
        frame.fallback = format!("{base}+{:#x}", frame.function_start.unwrap_or(frame.address).0);
        (frame.names, frame.aliases) = (names, aliases);
    }
    kept
}

/// What the frames of an object say about its functions. A function begins where its FDE does, and
/// reaches at least to the last frame in it.
fn functions(capture: &Capture, module: ModuleId) -> Vec<FunctionRange> {
    let mut ends: BTreeMap<VirtAddr, VirtAddr> = BTreeMap::new();
    for frame in capture.profile.frames.iter().filter(|frame| frame.module == Some(module)) {
        if let Some(start) = frame.function_start {
            let end = ends.entry(start).or_insert(start);
            *end = (*end).max(VirtAddr(frame.address.0.saturating_add(1)));
        }
    }
    ends.into_iter().map(|(start, end)| FunctionRange { start, end }).collect()
}

/// The allocator's functions, which the capture found out itself.
fn known(capture: &Capture, id: &BuildId) -> BTreeMap<VirtAddr, String> {
    if capture.target.build_id.as_ref() != Some(id) {
        return BTreeMap::new();
    }
    let own = capture.sites.iter().filter(|site| site.library.is_none());
    own.map(|site| (site.function_address, site.function.clone())).collect()
}

/// Counts each address once, as a capture does.
fn recount(capture: &mut Capture, id: ModuleId, object: &ObjectNames, kept: bool) {
    let mut by_address: HashMap<VirtAddr, bool> = HashMap::new();
    for frame in capture.profile.frames.iter().filter(|frame| frame.module == Some(id)) {
        by_address.insert(frame.address, frame.is_nameless());
    }
    let nameless = by_address.values().filter(|nameless| **nameless).count() as u64;
    let module = &mut capture.modules[id.0 as usize];
    (module.named, module.nameless) = (by_address.len() as u64 - nameless, nameless);
    let mut sources: BTreeSet<String> = object.sources.iter().map(|source| (*source).to_owned()).collect();
    if kept {
        sources.extend(module.symbols.drain(..));
    }
    module.symbols = sources.into_iter().collect();
}

/// Advice on how to get names that are there now is dropped.
fn drop_advice(capture: &mut Capture, index: usize, id: &BuildId) {
    let Module { path, nameless: 0, .. } = &capture.modules[index] else { return };
    capture.notes.retain(|note| !is_advice_on(note, path, id));
}
