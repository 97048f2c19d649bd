//! Kinds of addresses as types, so that they never mix.

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl $name {
            /// The address `bytes` further on.
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }
    };
}

address! {
    /// An address in the memory of a process.
    AbsAddr
}
address! {
    /// A virtual address as an ELF file's program headers give it, before relocation.
    VirtAddr
}
address! {
    /// An offset in a file.
    FileOffset
}

/// How far a mapped object is from its own virtual addresses: `AbsAddr = VirtAddr + Bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bias(pub u64);

impl AbsAddr {
    /// Where this address is in an object with that bias.
    pub const fn in_object(self, bias: Bias) -> VirtAddr {
        VirtAddr(self.0.wrapping_sub(bias.0))
    }
}

impl VirtAddr {
    /// Where this address is in a process that has the object mapped with that bias.
    pub const fn in_process(self, bias: Bias) -> AbsAddr {
        AbsAddr(self.0.wrapping_add(bias.0))
    }
}

/// A GNU build ID.
#[derive(Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BuildId(pub Vec<u8>);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BuildId({self})")
    }
}

impl From<BuildId> for String {
    fn from(id: BuildId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for BuildId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() || !text.len().is_multiple_of(2) || !text.is_ascii() {
            return Err(format!("'{text}' is no build ID"));
        }
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16))
            .collect::<Result<Vec<u8>, _>>()
            .map(Self)
            .map_err(|error| format!("'{text}' is no build ID: {error}"))
    }
}
