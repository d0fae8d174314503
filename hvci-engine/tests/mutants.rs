//! Breaks the engine on purpose, one way at a time, and sees that the invariant's test notices. Reports killed of total.
//!
//! Each mutant is a change of the source text, made in a copy of the crate: built as a VMM without the standard library has it, and whole for
//! what only the load path keeps.

#![cfg(feature = "std")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

struct Mutant {
    /// What the engine does wrong then.
    wrong: &'static str,
    file: &'static str,
    original: &'static str,
    mutated: &'static str,
    /// The test of `invariants.rs` that must fail, or that of the load path by its path.
    killer: &'static str,
}

const TRANSACTION: &str = "frames/transaction.rs";
const TABLE: &str = "frames/mod.rs";
const STATE: &str = "frames/state.rs";

const HYPERCALLS: &str = "vsm/partition/hypercalls.rs";
const I9: &str = "load::races::i9_every_byte_that_executes_has_a_provenance";
const I11: &str = "vault::isolation::i11_no_long_term_secret_is_outside_the_vaults_frames";
const I8: &str = "i8_the_end_of_boot_is_one_way";

const MUTANTS: &[Mutant] = &[
    Mutant {
        wrong: "VTL1 may write verified code",
        file: STATE,
        original: "Code = 4 \"code\", CODE, R;",
        mutated: "Code = 4 \"code\", CODE, RW;",
        killer: "i1_no_frame_is_writable_and_executable_through_any_path",
    },
    Mutant {
        wrong: "nothing is waited for before the bytes are looked at",
        file: TRANSACTION,
        original: "Ok(()) => self.proceed(end, Step::Quiesce),",
        mutated: "Ok(()) => self.proceed(end, if self.items.iter().any(|i| i.content() == Content::Verify) { Step::Inspect } else { Step::Scrub }),",
        killer: "i1_no_frame_is_writable_and_executable_through_any_path",
    },
    Mutant {
        wrong: "frames are let go before what they were promised is granted",
        file: TRANSACTION,
        original: "Ok(()) => self.proceed(end, Step::Open),\n                Err(status) => self.fail(status, Step::Reopen),",
        mutated: "Ok(()) => { let owner = self.owner; self.settle(table, 0..self.items.len(), |i| State { kind: i.to, owner: if i.to.is_owned() { owner } else { 0 } }); self.proceed(end, Step::Open) }\n                Err(status) => self.fail(status, Step::Reopen),",
        killer: "i1_holds_with_two_transactions_at_once",
    },
    Mutant {
        wrong: "a page can be claimed while it is being mapped",
        file: TABLE,
        original: "if old & HOLDS != 0 {",
        mutated: "if old == u64::MAX {",
        killer: "i1_a_page_that_is_being_mapped_cannot_be_claimed",
    },
    Mutant {
        wrong: "nobody looks at a claim whether the frame is still what it was",
        file: TABLE,
        original: "if from.is_some_and(|from| from != old.kind) {",
        mutated: "if from.is_some_and(|from| from.is_held()) {",
        killer: "i1_a_frame_that_became_something_else_is_not_claimed",
    },
    Mutant {
        wrong: "what was rejected is loaded",
        file: TRANSACTION,
        original: "        self.fail(status, Step::Reopen);\n    }\n\n    /// Does the next step",
        mutated: "        let _ = status;\n        self.enter(Step::Scrub);\n    }\n\n    /// Does the next step",
        killer: "i2_bytes_that_are_not_approved_never_execute",
    },
    Mutant {
        wrong: "bytes are not looked at",
        file: TRANSACTION,
        original: "self.enter(Step::Inspect)",
        mutated: "self.enter(Step::Scrub)",
        killer: "i2_bytes_that_are_not_approved_never_execute",
    },
    Mutant {
        wrong: "what becomes VTL1's stays readable on the way",
        file: STATE,
        original: "if readable { Kind::Locked } else { Kind::Hidden }",
        mutated: "if readable || true { Kind::Locked } else { Kind::Hidden }",
        killer: "i3_frames_of_vtl1_have_no_path_from_vtl0",
    },
    Mutant {
        wrong: "anybody may unload a module",
        file: TABLE,
        original: "if old.kind.is_owned() && old.owner != owner {",
        mutated: "if old.kind.is_owned() && old.owner == u32::MAX {",
        killer: "i4_only_rows_of_the_table_change_a_state_and_only_for_the_owner",
    },
    Mutant {
        wrong: "a frame may become anything that any frame may become",
        file: STATE,
        original: "TRANSITIONS.iter().find(|t| t.from == from && t.to == to)",
        mutated: "TRANSITIONS.iter().find(|t| t.from == from && t.to == to).or_else(|| TRANSITIONS.iter().find(|t| t.to == to))",
        killer: "i4_only_rows_of_the_table_change_a_state_and_only_for_the_owner",
    },
    Mutant {
        wrong: "a grant that failed is undone without waiting",
        file: TRANSACTION,
        original: "Ok(()) => self.proceed(end, Step::QuiesceAgain),",
        mutated: "Ok(()) => self.proceed(end, Step::Reopen),",
        killer: "i5_what_depends_on_a_removal_comes_after_the_quiesce",
    },
    Mutant {
        wrong: "an undo gives the default state and not the one before",
        file: TRANSACTION,
        original: "Some(was) if !self.scrubbed => was,",
        mutated: "Some(_) if !self.scrubbed => State::of(Kind::Data),",
        killer: "i6_errors_leave_permissions_at_or_below_what_they_were",
    },
    Mutant {
        wrong: "frames whose bytes are gone get their old state back",
        file: TRANSACTION,
        original: "Some(was) if !self.scrubbed => was,",
        mutated: "Some(was) => was,",
        killer: "i6_errors_leave_permissions_at_or_below_what_they_were",
    },
    Mutant {
        wrong: "a host that cannot restrict is ignored",
        file: TRANSACTION,
        original: "Err(status) => self.fail(status, Step::RestrictAgain),",
        mutated: "Err(_) => self.proceed(end, Step::Settle),",
        killer: "i6_errors_leave_permissions_at_or_below_what_they_were",
    },
    Mutant {
        wrong: "two changes of one frame in a transaction",
        file: TRANSACTION,
        original: "if a.frame == b.frame",
        mutated: "if a.frame == b.frame && a.to == Kind::Device",
        killer: "i4_i7_i12_any_sequence_does_what_a_naive_model_does",
    },
    Mutant {
        wrong: "what was quarantined is given back as it is",
        file: STATE,
        original: "Kind::Quarantined, Kind::Data, Content::Zero)",
        mutated: "Kind::Quarantined, Kind::Data, Content::Keep)",
        killer: "i6_what_was_quarantined_comes_back_scrubbed_and_by_its_owner_alone",
    },
    Mutant {
        wrong: "nobody is the owner of what was quarantined",
        file: TRANSACTION,
        original: "_ => State { kind: Kind::Quarantined, owner },",
        mutated: "_ => State { kind: Kind::Quarantined, owner: owner & 0 },",
        killer: "i6_what_was_quarantined_comes_back_scrubbed_and_by_its_owner_alone",
    },
    Mutant {
        wrong: "levels can be enabled after the boot",
        file: HYPERCALLS,
        original: "if levels.end_of_boot {\n            return Err(HvStatus::ACCESS_DENIED);\n        }\n        levels.vtl1 = true;",
        mutated: "levels.vtl1 = true;",
        killer: I8,
    },
    Mutant {
        wrong: "the configuration can be chosen after the boot",
        file: HYPERCALLS,
        original: "if levels.end_of_boot {\n            return Err(HvStatus::ACCESS_DENIED);\n        }\n        match name {",
        mutated: "match name {",
        killer: I8,
    },
    Mutant {
        wrong: "a state from before the end of boot undoes it",
        file: "vsm/partition/saved.rs",
        original: "|| levels.end_of_boot && !saved.levels.end_of_boot {",
        mutated: "{",
        killer: I8,
    },
    Mutant {
        wrong: "a module that is unloaded is not forgotten",
        file: "load/change.rs",
        original: "Ok(()) => self.modules().remove(id),",
        mutated: "Ok(()) => drop(self.settle(id, |_| {})),",
        killer: I9,
    },
    Mutant {
        wrong: "nobody notes where code that comes back is",
        file: "load/paging.rs",
        original: "module.set_page(at, Some(gpn));",
        mutated: "module.set_page(at, None);",
        killer: I9,
    },
    Mutant {
        wrong: "unloaded code is given back as it is",
        file: STATE,
        original: "row(\"discard or unload code\", Kind::Code, Kind::Data, Content::Zero)",
        mutated: "row(\"discard or unload code\", Kind::Code, Kind::Data, Content::Keep)",
        killer: "i10_unloading_removes_execution_then_waits_then_scrubs_then_gives_back",
    },
    Mutant {
        wrong: "the vault's frames can be read by VTL0",
        file: "vault/pages.rs",
        original: "map(|gpn| (*gpn, Kind::SecureOnly)).collect();",
        mutated: "map(|gpn| (*gpn, Kind::KernelData)).collect();",
        killer: I11,
    },
    Mutant {
        wrong: "a secret stays where VTL0 handed it over",
        file: "vault/service.rs",
        original: "self.vault.partition.write_vtl0(gpa, &mut vec![0; secret.len()])?;",
        mutated: "",
        killer: I11,
    },
    Mutant {
        wrong: "the secret of a credential that is removed stays in its frame",
        file: "vault/credential.rs",
        original: "self.pages.wipe(Table::place(handle))?;",
        mutated: "",
        killer: I11,
    },
    Mutant {
        wrong: "the secret of a credential that is out in a blob stays in its frame",
        file: "vault/operations.rs",
        original: "inner.pages.wipe(Table::place(handle))?;",
        mutated: "",
        killer: I11,
    },
];

#[test]
fn every_mutant_is_killed() {
    let copy = Copy::new();
    let sane = copy.test(None);
    assert!(sane.status.success(), "the copy fails as it is:\n{}", text(&sane));
    let mut alive = Vec::new();
    for mutant in MUTANTS {
        let path = copy.dir.join("hvci-engine/src").join(mutant.file);
        let source = fs::read_to_string(&path).unwrap();
        assert_eq!(source.matches(mutant.original).count(), 1, "stale mutant, {}: {}", mutant.wrong, mutant.original);
        fs::write(&path, source.replace(mutant.original, mutant.mutated)).unwrap();
        let output = copy.test(Some(mutant.killer));
        fs::write(&path, source).unwrap();
        let said = text(&output);
        assert!(!said.contains("error: could not compile"), "{}: {said}", mutant.wrong);
        if said.contains(&format!("test {} ... FAILED", mutant.killer)) {
            println!("killed: {}", mutant.wrong);
        } else {
            alive.push(mutant.wrong);
        }
    }
    println!("mutants killed: {} of {}", MUTANTS.len() - alive.len(), MUTANTS.len());
    assert!(alive.is_empty(), "alive: {alive:#?}");
}

/// A workspace of this crate alone.
struct Copy {
    dir: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        let _ = fs::remove_dir_all(dir.join("hvci-engine"));
        for part in ["src", "tests", "data"] {
            copy(&here.join(part), &dir.join("hvci-engine").join(part));
        }
        fs::copy(here.join("Cargo.toml"), dir.join("hvci-engine/Cargo.toml")).unwrap();
        let workspace = fs::read_to_string(here.join("../Cargo.toml")).unwrap();
        let alone: Vec<&str> = workspace
            .lines()
            .map(|line| if line.starts_with("members = ") { "members = [\"hvci-engine\"]" } else { line })
            .filter(|line| !line.starts_with("exclude = ") && !line.contains("{ path = "))
            .collect();
        fs::write(dir.join("Cargo.toml"), alone.join("\n")).unwrap();
        fs::copy(here.join("../Cargo.lock"), dir.join("Cargo.lock")).unwrap();
        Self { dir }
    }

    fn test(&self, killer: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO"));
        command.args(["test", "--offline", "-p", "hvci-engine"]);
        if killer.is_some_and(|name| name.contains("::")) {
            // beside what the tests are built from: dozens of crates that are there already
            command.arg("--lib").env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap());
        } else {
            command.args(["--no-default-features", "--test", "invariants"]).env("CARGO_TARGET_DIR", self.dir.join("target"));
        }
        command.arg("--").args(killer.iter().flat_map(|name| ["--exact", name]));
        // building each takes longer than running a test of it
        command.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0");
        command.current_dir(&self.dir).env_remove("RUSTFLAGS").env("PROPTEST_FAILURE_PERSISTENCE", "off").output().unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
        }
    }
}

fn text(output: &Output) -> String {
    [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat()
}
