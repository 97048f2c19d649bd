//! Finding the functions of a hand-made server: each method, and each check of it.

use tracer_ebpf::site::Role;

use super::{
    fixture::{
        ALLOC, BIAS, CONSTRUCTOR, CONTEXT, CREATE, DELETE, FREE, METHODS, Memory, OTHER_METHODS, REALLOC,
        RESET, RESET_ONLY, Server, TOP, load_table,
    },
    *,
};
use crate::{
    addr::{AbsAddr, VirtAddr},
    catalog::{Allocator, CatalogError, Kind, Layout, layouts},
};

fn layout_15() -> &'static Layout {
    layouts().iter().find(|row| row.major == 15).expect("15 is in the catalog")
}

fn alloc_set_15() -> &'static Allocator {
    &layout_15().alloc_set
}

fn addresses(found: &[LocatedFunction]) -> Vec<u64> {
    found.iter().map(|function| function.address.0).collect()
}

const EXPECTED: [u64; 5] = [ALLOC, FREE, REALLOC, RESET, DELETE];

fn static_failure(server: &Server) -> MethodFailure {
    by_static_table(&server.image(), alloc_set_15(), &server.ranges()).expect_err("a failed check")
}

fn live_failure(change: impl FnOnce(&mut Memory)) -> MethodFailure {
    let server = Server::stripped_15();
    let mut memory = Memory::of_15();
    change(&mut memory);
    by_live_process(&server.image(), layout_15(), &server.ranges(), memory.live())
        .expect_err("a failed check")
}

#[test]
fn a_stripped_server_is_planned_whole() {
    let server = Server::stripped_15();
    let memory = Memory::of_15();
    let plan = plan(&server.image(), &server.ranges(), Some(memory.live())).expect("a plan");
    assert_eq!((plan.version.major, plan.layout.major), (15, 15));
    let functions: Vec<_> = plan.sites.iter().map(|site| site.function).collect();
    assert_eq!(addresses(&functions[..5]), EXPECTED);
    // It has no other allocators, which is no reason to do without it.
    let missing: Vec<_> = plan.not_followed.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(missing, [Kind::Generation, Kind::Slab]);
    let made = functions[5];
    assert_eq!((made.role(), made.address.0, made.found_by), (Role::Create, CREATE, FoundBy::DynamicSymbols));
    for (index, (site, role)) in plan.sites.iter().zip(Role::METHODS).enumerate() {
        assert_eq!((site.site.role, usize::from(site.site.index)), (role, index));
        assert_eq!(site.function.found_by, FoundBy::StaticTable);
        assert_eq!(site.probe.0 - site.function.address.0, u64::from(site.site.skew));
        // The file is mapped one to one.
        assert_eq!(site.offset.0, site.probe.0);
    }
    assert_eq!((plan.sites[0].cost, plan.sites[0].instruction.as_str()), (CostClass::Emulated, "push rbp"));
    assert_eq!(plan.sites[0].function.size, Some(3));
}

#[test]
fn symbols_are_used_where_there_are_some() {
    let mut server = Server::stripped_15();
    assert!(matches!(
        by_full_symbols(&server.image(), alloc_set_15(), &server.ranges()),
        Err(MethodFailure::NoSymbolTable { table: FoundBy::FullSymbols })
    ));
    assert!(matches!(
        by_dynamic_symbols(&server.image(), alloc_set_15(), &server.ranges()),
        Err(MethodFailure::MissingSymbols { names }) if names.len() == 5
    ));
    server.locals = Server::local_functions();
    let found = locate(&server.image(), layout_15(), &server.ranges(), None).expect("symbols");
    assert_eq!(addresses(&found), EXPECTED);
    assert!(found.iter().all(|function| function.found_by == FoundBy::FullSymbols));
    server.exports.extend(Server::local_functions());
    let found = locate(&server.image(), layout_15(), &server.ranges(), None).expect("symbols");
    assert!(found.iter().all(|function| function.found_by == FoundBy::DynamicSymbols));
}

#[test]
fn a_name_must_stand_for_one_function() {
    let mut server = Server::stripped_15();
    server.locals = Server::local_functions();
    server.locals.push(("AllocSetFree", RESET));
    assert!(matches!(
        by_full_symbols(&server.image(), alloc_set_15(), &server.ranges()),
        Err(MethodFailure::SeveralSymbols { name: "AllocSetFree", addresses })
            if addresses == [VirtAddr(FREE), VirtAddr(RESET)]
    ));
    server.locals = Server::local_functions();
    server.locals[0].1 = ALLOC + 1;
    assert!(matches!(
        by_full_symbols(&server.image(), alloc_set_15(), &server.ranges()),
        Err(MethodFailure::NotAFunction { what: "AllocSetAlloc", .. })
    ));
}

#[test]
fn a_table_of_which_one_word_is_no_function_is_no_table() {
    let mut server = Server::stripped_15();
    // Not one of the five: the eighth, stats.
    server.relocations.insert(METHODS + 56, ALLOC + 1);
    assert!(matches!(
        static_failure(&server),
        MethodFailure::NoTable { entries: 8, looked_at, .. } if looked_at == [VirtAddr(METHODS)]
    ));
}

#[test]
fn two_tables_are_no_answer() {
    let mut server = Server::stripped_15();
    let second: Vec<_> =
        server.relocations.iter().map(|(place, value)| (place - METHODS + OTHER_METHODS, *value)).collect();
    server.relocations.extend(second);
    let constructor = server.code.get_mut(&CONSTRUCTOR).expect("the constructor");
    constructor.splice(7..14, load_table(CONSTRUCTOR + 7, OTHER_METHODS));
    assert!(
        matches!(static_failure(&server), MethodFailure::SeveralTables { tables, .. } if tables.len() == 2)
    );
}

#[test]
fn the_static_table_must_do_what_its_places_say() {
    let mut server = Server::stripped_15();
    // Another node tag: the constructor of another major.
    server.code.get_mut(&CONSTRUCTOR).expect("the constructor")[15] = 0xde;
    assert!(matches!(static_failure(&server), MethodFailure::NoTagInCode { expected: 223, .. }));

    // Alloc and Free change places: Realloc still calls both. Realloc and Reset do not.
    let mut server = Server::stripped_15();
    server.relocations.insert(METHODS + 16, RESET);
    server.relocations.insert(METHODS + 24, REALLOC);
    assert!(matches!(
        static_failure(&server),
        MethodFailure::MissingCall { caller: "AllocSetRealloc", callee: "AllocSetAlloc" }
    ));

    let mut server = Server::stripped_15();
    server.relocations.insert(METHODS + 32, RESET);
    assert!(matches!(
        static_failure(&server),
        MethodFailure::MissingCall { caller: "AllocSetDelete", callee: "MemoryContextResetOnly" }
    ));

    let mut server = Server::stripped_15();
    server.exports.retain(|(name, _)| *name != "MemoryContextResetOnly");
    assert!(matches!(
        static_failure(&server),
        MethodFailure::MissingSymbols { names } if names == ["MemoryContextResetOnly"]
    ));
}

#[test]
fn packed_relocations_leave_the_value_in_the_file() {
    let mut server = Server::stripped_15();
    // .data.rel.ro in the file, as DT_RELR and binaries with fixed addresses have it.
    for (place, value) in std::mem::take(&mut server.relocations) {
        server.code.insert(place, value.to_le_bytes().to_vec());
    }
    let ranges = Server::stripped_15().ranges();
    let found = by_static_table(&server.image(), alloc_set_15(), &ranges).expect("a table");
    assert_eq!(addresses(&found), EXPECTED);
}

#[test]
fn the_live_process_stands_in_when_the_file_says_nothing() {
    let mut server = Server::stripped_15();
    server.exports.retain(|(name, _)| *name != "AllocSetContextCreateInternal");
    let memory = Memory::of_15();
    let (image, ranges) = (server.image(), server.ranges());
    let found = locate(&image, layout_15(), &ranges, Some(memory.live())).expect("the process");
    assert_eq!(addresses(&found), EXPECTED);
    assert!(found.iter().all(|function| function.found_by == FoundBy::LiveProcess));

    let error = locate(&image, layout_15(), &ranges, None).expect_err("nothing to go by");
    let LocateError::NotFound { tried, .. } = &error else { panic!("{error}") };
    let methods: Vec<_> = tried.iter().map(|(method, _)| *method).collect();
    assert_eq!(
        methods,
        [FoundBy::DynamicSymbols, FoundBy::FullSymbols, FoundBy::StaticTable, FoundBy::LiveProcess]
    );
    for said in [".dynsym: ", ".symtab: ", "AllocSetContextCreateInternal", "no process"] {
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn a_process_that_uses_other_functions_is_refused_with_both() {
    let server = Server::stripped_15();
    let mut memory = Memory::of_15();
    memory.0.insert(BIAS.0 + METHODS + 8, BIAS.0 + RESET_ONLY);
    let error = locate(&server.image(), layout_15(), &server.ranges(), Some(memory.live()))
        .expect_err("two sets of functions");
    let LocateError::Disagreement { found, live, .. } = &error else { panic!("{error}") };
    assert_eq!((found[1].address, live[1].address), (VirtAddr(FREE), VirtAddr(RESET_ONLY)));
    assert!(error.to_string().contains("0x1050") && error.to_string().contains("0x10a0"), "{error}");
}

#[test]
fn a_process_that_cannot_be_checked_is_refused() {
    let server = Server::stripped_15();
    let memory = Memory(Default::default());
    assert!(matches!(
        locate(&server.image(), layout_15(), &server.ranges(), Some(memory.live())),
        Err(LocateError::NotConfirmed {
            found_by: FoundBy::StaticTable,
            source: MethodFailure::Read { address: AbsAddr(at), .. },
            ..
        }) if at == BIAS.0 + TOP
    ));
}

#[test]
fn what_is_not_the_top_context_is_not_believed() {
    assert!(matches!(
        live_failure(|memory| {
            memory.0.insert(BIAS.0 + TOP, 0);
        }),
        MethodFailure::NotStarted
    ));
    assert!(matches!(
        live_failure(|memory| {
            memory.0.insert(CONTEXT, 222);
        }),
        MethodFailure::WrongTag { expected: 223, seen: 222 }
    ));
    assert!(matches!(
        live_failure(|memory| {
            memory.0.insert(CONTEXT + 24, 0x1000);
        }),
        MethodFailure::HasParent { .. }
    ));
    assert!(matches!(
        live_failure(|memory| {
            let name = memory.0[&(CONTEXT + 56)];
            memory.0.insert(name + 16, u64::from_le_bytes(*b"2\0\0\0\0\0\0\0"));
        }),
        MethodFailure::WrongName { seen } if seen == "TopMemoryContext2"
    ));
    // A table on the heap, and one in the code.
    for table in [CONTEXT + 0x100, BIAS.0 + CONSTRUCTOR] {
        assert!(matches!(
            live_failure(|memory| { memory.0.insert(CONTEXT + 16, table); }),
            MethodFailure::TableOutside { address: AbsAddr(at) } if at == table
        ));
    }
    assert!(matches!(
        live_failure(|memory| {
            memory.0.insert(BIAS.0 + METHODS + 32, BIAS.0 + DELETE + 5);
        }),
        MethodFailure::NotAFunction { what: "AllocSetDelete", .. }
    ));
    assert!(matches!(
        live_failure(|memory| {
            memory.0.insert(BIAS.0 + METHODS + 32, CONTEXT);
        }),
        MethodFailure::NotAFunction { what: "AllocSetDelete", .. }
    ));
}

#[test]
fn the_process_must_run_the_code_of_the_file() {
    assert!(matches!(
        live_failure(|memory| *memory.0.get_mut(&(BIAS.0 + FREE)).expect("code") ^= 0xff00),
        MethodFailure::CodeDiffers { what: "AllocSetFree", address: AbsAddr(at) } if at == BIAS.0 + FREE + 1
    ));
    // Somebody else's probe at the entry.
    let server = Server::stripped_15();
    let mut memory = Memory::of_15();
    let word = memory.0.get_mut(&(BIAS.0 + FREE)).expect("code");
    *word = *word & !0xff | 0xcc;
    let found = by_live_process(&server.image(), layout_15(), &server.ranges(), memory.live());
    assert_eq!(addresses(&found.expect("the same functions")), EXPECTED);
}

#[test]
fn what_is_no_known_server_has_no_plan() {
    let plan_of = |server: &Server| plan(&server.image(), &server.ranges(), None).expect_err("a refusal");
    let mut server = Server::stripped_15();
    server.version = "PostgreSQL 11.22 on x86_64-pc-linux-gnu, compiled by gcc, 64-bit";
    assert!(matches!(plan_of(&server), ProbeError::Catalog(CatalogError::UnknownVersion { .. })));
    server.version = "no version";
    assert!(matches!(plan_of(&server), ProbeError::Catalog(CatalogError::NoVersion { .. })));
    // psql holds the server's version string, but not its variables.
    let mut server = Server::stripped_15();
    server.exports.retain(|(name, _)| *name != "TopMemoryContext");
    assert!(matches!(
        plan_of(&server),
        ProbeError::Catalog(CatalogError::NotAServer { symbol: "TopMemoryContext", .. })
    ));
    // Without .eh_frame nothing can be checked.
    let image = Server::stripped_15().image();
    assert!(matches!(plan(&image, &[], None), Err(ProbeError::Locate(LocateError::NoFunctionRanges { .. }))));
    // A foreign Greenplum string never gets PostgreSQL's layout.
    let mut server = Server::stripped_15();
    server.exports.push(("GpIdentity", TOP));
    assert!(matches!(plan_of(&server), ProbeError::Catalog(CatalogError::UnknownVersion { .. })));
}
