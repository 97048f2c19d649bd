//! Names as people write them.

use cpp_demangle::DemangleOptions;

/// A longer name is not worth the time: nobody reads it, and a crafted one may take forever.
const MOST_MANGLED_BYTES: usize = 4096;

/// The name of a Rust or C++ function without hash, parameters and return type; any other name
/// as it is. What a compiler appended to a name (`.isra.0`, `.cold`) stays appended.
pub fn demangle(name: &str) -> String {
    if name.len() > MOST_MANGLED_BYTES || !name.starts_with("_Z") && !name.starts_with("_R") {
        return name.to_owned();
    }
    // Rust's legacy names are C++ names too, with a hash as their last part: Rust goes first.
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    let (mangled, suffix) = split_suffix(name);
    let options = DemangleOptions::new().no_params().no_return_type();
    let cpp = cpp_demangle::Symbol::new(mangled)
        .ok()
        .and_then(|symbol| symbol.demangle_with_options(&options).ok());
    cpp.map_or_else(|| name.to_owned(), |cpp| cpp + suffix)
}

/// Parts a name from what a compiler appended to it: `foo` and `.isra.0`.
pub(super) fn split_suffix(name: &str) -> (&str, &str) {
    // A name cannot begin with its suffix.
    let dot = name.char_indices().skip(1).find(|(_, character)| *character == '.');
    name.split_at(dot.map_or(name.len(), |(at, _)| at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_three_languages() {
        for (name, want) in [
            ("AllocSetAlloc", "AllocSetAlloc"),
            ("AllocSetAllocFromNewBlock.isra.0", "AllocSetAllocFromNewBlock.isra.0"),
            ("_bt_search.cold", "_bt_search.cold"),
            ("_ZN5gpopt7CEngine8OptimizeEv", "gpopt::CEngine::Optimize"),
            (
                "_ZN4gpos11CMemoryPool7NewImplEmPKcjNS0_15EAllocationTypeE.part.0",
                "gpos::CMemoryPool::NewImpl.part.0",
            ),
            ("_ZSt4moveIRiEONSt16remove_referenceIT_E4typeEOS2_", "std::move<int&>"),
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
            ("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function"),
            ("_Zbroken", "_Zbroken"),
            ("_Z", "_Z"),
            ("", ""),
        ] {
            assert_eq!(demangle(name), want);
        }
        let long = format!("_Z{}", "P".repeat(1 << 20));
        assert_eq!(demangle(&long), long);
    }

    #[test]
    fn suffixes_are_what_follows_the_first_dot() {
        assert_eq!(split_suffix("foo.isra.0.cold"), ("foo", ".isra.0.cold"));
        assert_eq!(split_suffix(".hidden"), (".hidden", ""));
        assert_eq!(split_suffix(""), ("", ""));
    }
}
