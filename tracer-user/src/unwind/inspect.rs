//! Everything that is to be said of the unwind table of one file.

use std::{
    collections::HashSet,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use object::{Object as _, ObjectSection as _, SectionFlags, elf::SHF_EXECINSTR};
use tracer_ebpf::unwind::{Row, RowInfo};

use super::{
    Atlas, AtlasError, TableError, TableStats, UnwindTable,
    check::{Comparison, compare},
    table::code_ranges,
};
use crate::{
    addr::{BuildId, VirtAddr},
    elf::{FrameSection, Image},
};

/// How many addresses that differ are shown.
const SHOWN: usize = 10;

/// Why there is no table to look at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file has no unwind information, or not the kind that is followed.
    #[error("{path} has no {lacks}{}; stacks end in such an object", if *has_debug_frame { " (its .debug_frame is not used: run-time unwinders have none)" } else { "" })]
    Nothing {
        /// The file.
        path: PathBuf,
        /// The section, or what is missing in it.
        lacks: &'static str,
        /// Whether there is a `.debug_frame`.
        has_debug_frame: bool,
    },
    /// It cannot be found or indexed.
    #[error(transparent)]
    Table(#[from] TableError),
    /// It has more rows or pages than the kernel's maps can number.
    #[error(transparent)]
    Atlas(#[from] AtlasError),
}

impl InspectError {
    /// Whether the file is nothing that could be looked at, rather than one that pgleak fails on.
    pub fn is_misuse(&self) -> bool {
        matches!(self, Self::Nothing { .. })
    }
}

/// Executable bytes of the file for which the table has no row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// How many.
    pub bytes: u64,
    /// In how many places.
    pub places: u64,
    /// Where the longest of them begins, and its bytes.
    pub longest: Option<(VirtAddr, u64)>,
}

/// The unwind table of a file, compared with gimli.
#[derive(Clone, Debug)]
pub struct Inspection {
    path: PathBuf,
    build_id: Option<BuildId>,
    /// Size of `.eh_frame`.
    pub section_bytes: usize,
    /// Size of `.debug_frame`, which is not used.
    pub debug_frame_bytes: Option<usize>,
    /// What was met.
    pub stats: TableStats,
    /// How many different rules the rows have.
    pub distinct_rules: usize,
    /// Entries of the page index.
    pub pages: usize,
    /// Rows in the page that has most.
    pub fullest_page: u32,
    /// Kernel memory for rows and index.
    pub table_bytes: usize,
    /// Code without rows.
    pub gaps: Gaps,
    /// How long it took to build the table.
    pub build_time: Duration,
    /// What gimli says.
    pub comparison: Comparison,
}

impl Inspection {
    /// Builds the table of an image and compares it.
    ///
    /// # Errors
    /// If there is no table.
    pub fn of(image: &Image) -> Result<Self, InspectError> {
        let debug_frame_bytes = image.section(".debug_frame").map(|(_, bytes)| bytes.len());
        let lacks = |lacks| InspectError::Nothing {
            path: image.path().to_owned(),
            lacks,
            has_debug_frame: debug_frame_bytes.is_some(),
        };
        let section = FrameSection::of(image).map_err(TableError::from)?.ok_or_else(|| lacks(".eh_frame"))?;
        let began = Instant::now();
        let table = UnwindTable::build(image)?.ok_or_else(|| lacks("functions in its .eh_frame"))?;
        let build_time = began.elapsed();
        let mut atlas = Atlas::new();
        let placement = atlas.add(&table)?;
        Ok(Self {
            path: image.path().to_owned(),
            build_id: image.build_id().cloned(),
            section_bytes: section.bytes.len(),
            debug_frame_bytes,
            stats: table.stats,
            distinct_rules: table.rows.iter().map(|row| row.info()).collect::<HashSet<_>>().len(),
            pages: table.pages.len(),
            fullest_page: table.pages.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0),
            table_bytes: size_of_val(&table.rows[..]) + size_of_val(&table.pages[..]),
            gaps: gaps(image, &table.rows),
            build_time,
            comparison: compare(image, &atlas, placement)?,
        })
    }

    /// Whether gimli says the same of every address.
    pub fn agrees(&self) -> bool {
        self.comparison.wrong_rows.is_empty() && self.comparison.wrong_steps.is_empty()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where the image has instructions: some linkers put constants into the same segment.
fn instructions(image: &Image) -> Vec<Range<u64>> {
    let is_code =
        |flags| matches!(flags, SectionFlags::Elf { sh_flags } if sh_flags & u64::from(SHF_EXECINSTR) != 0);
    let sections: Vec<Range<u64>> = image.elf().map_or_else(
        |_| Vec::new(),
        |elf| {
            let code = elf.sections().filter(|section| is_code(section.flags()));
            code.map(|section| section.address()..section.address().saturating_add(section.size())).collect()
        },
    );
    // Sections say what they like; the segments are what is mapped.
    let code = code_ranges(image);
    let is_there =
        |section: &Range<u64>| code.iter().any(|r| r.start <= section.start && section.end <= r.end);
    let there: Vec<Range<u64>> = sections.into_iter().filter(is_there).collect();
    if there.is_empty() { code } else { there }
}

/// The code of an image that lies in rows which say that there is nothing.
fn gaps(image: &Image, rows: &[Row]) -> Gaps {
    let code = instructions(image);
    let mut gaps = Gaps::default();
    let ends = rows.iter().skip(1).map(|row| row.address()).chain([u64::MAX]);
    for (row, end) in rows.iter().zip(ends).filter(|(row, _)| row.info() == RowInfo::NONE) {
        for range in &code {
            let start = row.address().max(range.start);
            let bytes = end.min(range.end).saturating_sub(start);
            if bytes > 0 {
                gaps.bytes += bytes;
                gaps.places += 1;
                if gaps.longest.is_none_or(|(_, longest)| bytes > longest) {
                    gaps.longest = Some((VirtAddr(start), bytes));
                }
            }
        }
    }
    gaps
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stats, gaps, comparison, .. } = self;
        writeln!(f, "{}", self.path.display())?;
        match &self.build_id {
            Some(id) => writeln!(f, "  build ID     {id}")?,
            None => writeln!(f, "  build ID     none")?,
        }
        write!(f, "  .eh_frame    {} bytes, {} FDEs", self.section_bytes, stats.fdes)?;
        for (count, what) in [
            (u64::from(stats.broken_fdes), "FDEs broken, outside of the code or overlapping"),
            (stats.unread_bytes, "bytes at the end that are no entries"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        writeln!(f)?;
        if let Some(bytes) = self.debug_frame_bytes {
            writeln!(f, "  .debug_frame {bytes} bytes, not used")?;
        }
        writeln!(
            f,
            "  table        {} rows of {} distinct rules, {} pages with {} rows at the most, {} bytes",
            stats.rows, self.distinct_rules, self.pages, self.fullest_page, self.table_bytes
        )?;
        writeln!(f, "  built in     {:.1} ms", self.build_time.as_secs_f64() * 1e3)?;
        write!(f, "  gaps         {} executable bytes without rows", gaps.bytes)?;
        if let Some((at, bytes)) = gaps.longest {
            write!(f, " in {} places, the longest {bytes} bytes at {at}", gaps.places)?;
        }
        // Neighbours that are not followed, whatever their rules are, share a row of the table.
        writeln!(f, "\n  unsupported  {} rows", stats.unsupported_rows)?;
        for (reason, refused) in &comparison.reasons {
            writeln!(f, "    {} by {reason}, the first at {}", refused.rows, refused.example)?;
        }
        write!(f, "  compared     {} addresses, {} steps", comparison.addresses, comparison.steps)?;
        if self.agrees() {
            return writeln!(f, ": gimli agrees with all");
        }
        let wrong = [("row", &comparison.wrong_rows), ("step", &comparison.wrong_steps)];
        for (what, addresses) in wrong.into_iter().filter(|(_, addresses)| !addresses.is_empty()) {
            write!(f, "\n  WRONG        {} {what}s differ from gimli:", addresses.len())?;
            for address in addresses.iter().take(SHOWN) {
                write!(f, " {address}")?;
            }
        }
        writeln!(f)
    }
}
