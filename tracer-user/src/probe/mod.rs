//! From a server binary and its process to the plan of probes.

mod choose;
mod code;
mod error;
mod live;
mod locate;
mod outside;
mod plan;
mod site;
mod static_table;
mod statics;
mod symbols;

pub use error::{LocateError, MethodFailure};
pub use live::{LiveProcess, by_live_process, row_of, top_context_variable};
pub use locate::{FoundBy, LocatedFunction, locate, locate_others};
pub use outside::{OutsideError, outside};
pub use plan::{ProbeError, ProbePlan, plan};
pub use site::{CostClass, Library, ProbeSite, choose_site};
pub use static_table::by_static_table;
pub use statics::static_functions;
pub use symbols::{by_dynamic_symbols, by_full_symbols, constructor, exported_variable, main_loop};

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
