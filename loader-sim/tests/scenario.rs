//! Scenarios, and what becomes of them: traces that replay byte for byte (invariant I12) and that are made small; and what is wrong with both
//! is said, whatever they hold.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

use corpus::synth::{
    certificate::Template,
    elf,
    key::{Key, KeyKind},
};
use hvci_engine::event::Event;
use loader_sim::{
    scenario::{Played, Scenario, play},
    trace::{Trace, TraceError, limits, replay, shrink},
};
use proptest::prelude::*;
use x509_cert::der::Encode;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

fn text(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn played(text: &str, seed: u64) -> Played {
    play(&Scenario::parse(text).unwrap(), &folder(), seed).unwrap()
}

fn bytes(trace: &Trace) -> Vec<u8> {
    let mut bytes = Vec::new();
    trace.write(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Trace, TraceError> {
    Trace::read(&mut &bytes[..])
}

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A trace of the race in which nothing is loaded because the write came first.
static RACE: LazyLock<Trace> = LazyLock::new(|| played(&text("race.toml"), 3).trace);

#[test]
fn every_example_runs_as_it_expects() {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let scenario = Scenario::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        let Played { rows, broken, .. } = play(&scenario, &folder(), scenario.seed).unwrap();
        assert!(rows.iter().all(|row| row.as_expected), "{}: {rows:#?}", path.display());
        assert_eq!(broken, Vec::<String>::new());
        names.push(path.file_name().unwrap().to_owned());
    }
    assert!(names.len() >= 3, "{names:?}");
}

#[test]
fn what_the_engine_refuses_goes_through_without_it() {
    let with = text("engine-off.toml").replace("engine = false", "engine = true");
    let results = |text: &str| played(text, 0).rows.into_iter().map(|row| row.result).collect::<Vec<_>>();
    assert_eq!(results(&with), ["0: #GP", "1: #GP", "written", "ccad0b0000c3"]);
    assert_eq!(results(&text("engine-off.toml")), ["0: through", "1: through", "written", "ccad0b0000c3"]);
}

#[test]
fn files_are_loaded_by_whom_they_are_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let key = Template::leaf("CN=own key", &[]).issue(&Key::derive(11, "own", KeyKind::P256).unwrap(), None).unwrap();
    fs::write(dir.path().join("own.der"), key.certificate.to_der().unwrap()).unwrap();
    fs::write(dir.path().join("own.ko"), elf::signed(&elf::module("own", false).unwrap(), &elf::signing(&key)).unwrap()).unwrap();
    fs::write(dir.path().join("note.txt"), "no image").unwrap();
    let driver = |name: &str, file: &str| {
        format!(
            "[[driver]]\nname = \"{name}\"\nfile = \"{file}\"\n[[program]]\nname = \"{name}\"\ncode = [\"load {name}\"]\n[[step]]\nrun = {{ 0 = \"{name}\" }}\n"
        )
    };
    let results = |roots: &str| {
        let text = format!("roots = [{roots}]\n{}{}", driver("own", "own.ko"), driver("note", "note.txt"));
        let Played { rows, .. } = play(&Scenario::parse(&text).unwrap(), dir.path(), 0).unwrap();
        rows.into_iter().map(|row| (row.result, row.codes.join(" "))).collect::<Vec<_>>()
    };
    let row = |result: &str, codes: &str| (result.to_owned(), codes.to_owned());
    assert_eq!(results("\"module=own.der\"")[0], row("0: through", ""));
    let [own, note] = &results("")[..] else { panic!("two steps") };
    assert_eq!(*own, row("0: status 0x6", "HVCI-PKI-014"));
    assert!(note.0 == "0: status 0x6" && note.1.starts_with("HVCI-"), "{note:?}");
}

#[test]
fn an_expectation_that_is_not_met_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wrong.toml");
    fs::write(&path, text("race.toml").replace("2: through", "2: #UD")).unwrap();
    let output = sim(&["run", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("DIFFERS: line 30 of the scenario expects 0: through"), "{}", said(&output));
    let codes = text("driver.toml").replace("codes = [\"HVCI-SIG-011\"]", "codes = []");
    assert!(!played(&codes, 0).rows[0].as_expected);
}

#[test]
fn the_seed_decides_who_wins() {
    let result = |seed| played(&text("race.toml"), seed).rows[0].result.clone();
    let mut seen: Vec<String> = (0..40).map(result).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(result(5), result(5));
    let seeds = sim(&["run", folder().join("race.toml").to_str().unwrap(), "--seed", "0", "--seeds", "40"]);
    assert_eq!((seeds.status.code(), said(&seeds).lines().count()), (Some(0), 4), "{}", said(&seeds));
}

/// Invariant I12.
#[test]
fn a_replay_is_the_recording_byte_for_byte_in_another_process_too() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for name in ["race.toml", "driver.toml", "engine-off.toml"] {
        let scenario = folder().join(name);
        let record = |trace: &str, events: &str| {
            let output = sim(&["record", scenario.to_str().unwrap(), "-o", &at(trace), "--events", &at(events)]);
            assert_eq!(output.status.code(), Some(0), "{}", complained(&output));
        };
        record("one", "one.ndjson");
        record("two", "two.ndjson");
        assert!(fs::read(at("one")).unwrap() == fs::read(at("two")).unwrap(), "{name}");
        let events = fs::read_to_string(at("one.ndjson")).unwrap();
        assert!(events == fs::read_to_string(at("two.ndjson")).unwrap(), "{name}");
        let events: Vec<Event> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.is_empty(), name == "engine-off.toml", "{name}");
        assert!(events.iter().map(|event| event.sequence).eq(0..events.len() as u64), "none is lost");
        for _ in 0..2 {
            let output = sim(&["replay", &at("one")]);
            assert_eq!(output.status.code(), Some(0), "{}", said(&output));
            assert!(said(&output).ends_with(&format!(", {} events, the same\n", events.len())), "{}", said(&output));
        }
        let trace = read(&fs::read(at("one")).unwrap()).unwrap();
        let replayed = replay(&trace).unwrap();
        assert_eq!(replayed.difference, None);
        assert!(bytes(&replayed.trace) == fs::read(at("one")).unwrap(), "{name}");
    }
}

#[test]
fn a_change_is_shown_where_it_is() {
    let recorded = String::from_utf8(bytes(&RACE)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed").to_str().unwrap().to_owned();
    let replayed = |text: &str| {
        fs::write(&path, text).unwrap();
        let output = sim(&["replay", &path]);
        (output.status.code(), said(&output))
    };
    let line = 1 + recorded.lines().position(|line| line.contains("HVCI-MEM-001")).unwrap();
    let (status, text) = replayed(&recorded.replacen("HVCI-MEM-001", "HVCI-MEM-002", 1));
    assert_eq!(status, Some(1));
    assert!(text.contains(&format!("line {line} differs\n  recorded  {{\"event\":")) && text.contains("\n  played    {"), "{text}");
    // an event that is not there
    let without: String = recorded.lines().enumerate().filter(|(at, _)| at + 1 != line).map(|(_, text)| format!("{text}\n")).collect();
    let (status, text) = replayed(&without);
    assert!(status == Some(1) && text.contains(&format!("line {line} differs")), "{text}");
    // a byte that no event depends on
    let (status, text) = replayed(&recorded.replacen("290496}}", "290497}}", 1));
    assert!(status == Some(1) && text.ends_with("the inputs are not those that were recorded\n"), "{text}");
}

#[test]
fn a_padded_trace_is_made_small_and_still_shows_it() {
    let mut trace = RACE.clone();
    let runs: Vec<_> = trace.steps.iter().filter(|step| format!("{:?}", step.input).starts_with("Run")).cloned().collect();
    let boot = trace.steps.iter().position(|step| format!("{:?}", step.input).starts_with("Boot")).unwrap();
    // what is done to a machine that is not there yet, and once more when everything is over
    trace.steps.splice(boot..boot, runs.clone());
    trace.steps.extend(runs);
    let shows = |trace: &Trace| trace.outputs().any(|line| line.contains("HVCI-MEM-001"));
    let shrunk = shrink(&trace, 2000, &shows).unwrap().unwrap();
    assert!(shrunk.minimal && shrunk.trace.steps.len() <= 13, "{} of {}", shrunk.trace.steps.len(), trace.steps.len());
    let again = replay(&read(&bytes(&shrunk.trace)).unwrap()).unwrap();
    assert_eq!(again.difference, None);
    assert!(shows(&again.trace));
    for left_out in 0..shrunk.trace.steps.len() {
        let mut smaller = shrunk.trace.clone();
        smaller.steps.remove(left_out);
        assert!(!shows(&replay(&smaller).unwrap().trace), "input {left_out} is not needed");
    }
    assert_eq!(shrink(&trace, 2000, &shows).unwrap().unwrap().trace, shrunk.trace, "it is the same every time");
    // bounded, and never less than it was
    let little = shrink(&trace, 5, &shows).unwrap().unwrap();
    assert!(!little.minimal && little.replays <= 6 && shows(&little.trace));
    assert!(shrink(&trace, 100, &|_| false).unwrap().is_none());
}

#[test]
fn the_transcript_of_the_readme_is_what_it_prints() {
    let dir = tempfile::tempdir().unwrap();
    let readme = include_str!("../../README.md");
    let commands: Vec<&str> =
        readme.lines().skip_while(|line| !line.starts_with("$ hvci-sim run ")).take_while(|line| *line != "```").collect();
    let mut printed = Vec::new();
    for command in commands.iter().filter_map(|line| line.strip_prefix("$ hvci-sim ")) {
        let scenario = folder().join("race.toml");
        let args = command.split(' ').map(|word| if word.ends_with(".toml") { scenario.to_str().unwrap() } else { word });
        let output = Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(args).current_dir(&dir).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", complained(&output));
        printed.push(format!("$ hvci-sim {command}\n{}", said(&output)));
    }
    assert_eq!(printed.len(), 4);
    assert_eq!(printed.concat(), commands.join("\n") + "\n");

    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    assert_eq!(sim(&["replay", &at("small.trace")]).status.code(), Some(0));
    assert_eq!(sim(&["shrink", &at("race.trace"), "--shows", "HVCI-TPM-001", "-o", &at("no.trace")]).status.code(), Some(1));
    assert!(!Path::new(&at("no.trace")).exists());
    assert_eq!(sim(&["shrink", &at("missing"), "--shows", "x", "-o", &at("no.trace")]).status.code(), Some(2));
}

#[test]
fn the_scenario_of_the_documentation_runs() {
    let page = include_str!("../../docs/scenarios.md");
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (scenario, _) = rest.split_once("```").unwrap();
    for seed in 0..8 {
        let Played { rows, .. } = played(scenario, seed);
        assert!(rows.iter().all(|row| row.as_expected), "{rows:#?}");
    }
}

#[test]
fn what_is_wrong_with_a_trace_is_said_with_its_line() {
    let recorded = String::from_utf8(bytes(&RACE)).unwrap();
    let wrong = |text: &str| read(text.as_bytes()).unwrap_err();
    let message = |text: &str| wrong(text).to_string();
    let with_input = |input: &str| format!("{}\n{input}\n", recorded.lines().next().unwrap());
    assert_eq!(message(""), "line 1: the trace is empty");
    assert!(message(&recorded[..recorded.len() / 2]).contains("the line has no end"));
    let lines = recorded.lines().count();
    let without_end: String = recorded.lines().take(lines - 1).map(|line| format!("{line}\n")).collect();
    assert_eq!(message(&without_end), format!("line {lines}: the trace is cut short: it has no end"));
    assert_eq!(message(&format!("{recorded}{{}}\n")), format!("line {}: something stands behind the end", lines + 1));
    assert!(message(&recorded.replacen(":1,\"pages\"", ":2,\"pages\"", 1)).contains("version 2 of the form"));
    assert!(message(&recorded.replacen("\"pages\"", "\"more\":1,\"pages\"", 1)).starts_with("line 1: unknown field `more`"));
    assert!(message(&recorded.replacen("\"pages\":1024", "\"pages\":99999999999", 1)).starts_with("line 1: 99999999999 pages"));
    assert!(message(&recorded.replacen("\"vps\":3", "\"vps\":4294967295", 1)).contains("processors"));
    assert!(message(&recorded.replacen("\"aliases\":[]", "\"aliases\":[5000]", 1)).contains("which is no RAM"));
    for (input, what) in [
        ("{\"run\":{\"vp\":0,\"instructions\":1,\"fast\":true}}", "line 2: unknown field `fast`"),
        ("{\"jump\":{}}", "line 2: unknown variant `jump`"),
        ("{\"run\":{\"vp\":0}}", "line 2: missing field `instructions`"),
        ("{\"run\":{\"vp\":0,\"instructions\":99999999999999}}", "line 2: more than"),
        ("{\"read\":{\"gpa\":0,\"len\":18446744073709551615}}", "line 2: 18446744073709551615 bytes"),
        ("{\"write\":{\"gpa\":0,\"bytes\":\"0\"}}", "line 2: Odd number of digits"),
        ("{\"event\":{}}", "line 2: nothing came before this"),
        ("{\"end\":{\"inputs\":1,\"sha256\":\"\"}}", "line 2: 1 inputs are said to be there, and 0 are"),
        ("[[[[", "line 2: "),
    ] {
        assert!(message(&with_input(input)).starts_with(what), "{input}: {}", message(&with_input(input)));
    }
    let long = format!("{{\"write\":{{\"gpa\":0,\"bytes\":\"{}\"}}}}", "00".repeat(usize::try_from(limits::LINE).unwrap()));
    assert!(message(&with_input(&long)).contains("too long"));
    let output = sim(&["replay", folder().join("race.toml").to_str().unwrap()]);
    assert!(output.status.code() == Some(2) && complained(&output).contains("race.toml: line 1: "), "{}", complained(&output));
}

#[test]
fn what_no_machine_can_do_is_answered_not_fatal() {
    let machine = String::from_utf8(bytes(&RACE)).unwrap().lines().next().unwrap().to_owned();
    let inputs = [
        "{\"write\":{\"gpa\":18446744073709551615,\"bytes\":\"0000\"}}",
        "{\"write\":{\"gpa\":4194303,\"bytes\":\"0000\"}}",
        "{\"read\":{\"gpa\":18446744073709551615,\"len\":1048576}}",
        "{\"start\":{\"vp\":7,\"rip\":0,\"rsp\":0,\"cr3\":0,\"idt\":0}}",
        "{\"run\":{\"vp\":7,\"instructions\":1}}",
        "{\"interrupt\":{\"vp\":7,\"vector\":255}}",
        "{\"boot\":{\"code\":[99999999]}}",
        "{\"boot\":{\"code\":[]}}",
    ];
    for engine in ["true", "false"] {
        let text = machine.replace("\"engine\":true", &format!("\"engine\":{engine}"));
        let end = format!("{{\"end\":{{\"inputs\":{},\"sha256\":\"\"}}}}", inputs.len());
        let trace = read(format!("{text}\n{}\n{end}\n", inputs.join("\n")).as_bytes()).unwrap();
        assert!(trace.edited);
        let replayed = replay(&trace).unwrap().trace;
        let answers =
            replayed.steps.iter().filter(|step| step.outputs.iter().any(|line| line.starts_with("{\"answer\":{\"status\":"))).count();
        // without an engine, nobody asks which pages were verified
        assert_eq!(answers, if engine == "true" { 8 } else { 7 }, "{replayed:#?}");
    }
}

#[test]
fn what_is_wrong_with_a_scenario_is_said_with_its_line() {
    let message = |text: &str| match Scenario::parse(text) {
        Err(error) => error.to_string(),
        Ok(scenario) => play(&scenario, &folder(), 0).err().map_or_else(|| "nothing".to_owned(), |error| error.to_string()),
    };
    let driver = "[[driver]]\nname = \"good\"\nsynth = \"good\"\n";
    let program = |code: &str| format!("{driver}[[program]]\nname = \"p\"\ncode = [\"{code}\"]\n");
    for (text, what) in [
        ("seed = 1\nsped = 2\n".to_owned(), "line 2, column 1"),
        ("seed = 1\nsped = 2\n".to_owned(), "unknown field `sped`"),
        ("vps = 65\n".to_owned(), "line 1: vps is 1 to 64"),
        ("\nvps = 0\n".to_owned(), "line 2: vps is 1 to 64"),
        ("pages = 99999999999\n".to_owned(), "line 1: pages is"),
        ("pages = 256\n[[driver]]\nname = \"a\"\nsynth = \"good\"\nat = 0x100\n".to_owned(), "line 3: a: page 0x100 is no RAM"),
        (
            format!(
                "pages = 256\nvps = 64\n{}",
                "abc".chars().map(|c| driver.replace("good\"\ns", &format!("{c}\"\ns"))).collect::<String>()
            ),
            "line 1: 256 pages are too few",
        ),
        (format!("{driver}at = 0x11\n"), "line 2: good: pages below"),
        (format!("{driver}base = 0x1001\n"), "line 2: good: 0x1001 is no address"),
        (format!("{driver}base = 0xFFFFFFFFFFFFF000\n"), "line 2: good: 0xfffffffffffff000 is no address"),
        (format!("{driver}{driver}"), "line 5: a second driver is called good"),
        (format!("{driver}file = \"x.ko\"\n"), "line 2: good has either file or synth"),
        ("[[driver]]\nname = \"x\"\nfile = \"nowhere.ko\"\n".to_owned(), "line 3: cannot read "),
        ("roots = [\"module\"]\n".to_owned(), "line 1: a root is PURPOSE=FILE"),
        ("roots = [\"nobody=x\"]\n".to_owned(), "line 1: nobody is no purpose"),
        (program("dance"), "line 6: \"dance\" is none of load DRIVER"),
        (program("load bad"), "line 6: no driver is called bad"),
        (program("call bad+1"), "line 6: bad is no number and none of device, good, pool"),
        (program("write good 0xZZ"), "line 6: 0xZZ is no number"),
        (program("hex 9"), "line 6: no hexadecimal"),
        (program("vtl-call 1 2 3 4 5 6 7 8 9 10 11 12 13 14"), "line 6: 13 arguments"),
        (program(&format!("hex {}", "90".repeat(5000))), "line 5: p takes more than a page"),
        ("[[step]]\nrun = { 0 = \"p\" }\n".to_owned(), "line 2: no processor 0, or no program p"),
        (format!("{}[[step]]\nrun = {{ x = \"p\" }}\n", program("call 0")), "line 8: x is no processor"),
        (format!("{}[[step]]\nrun = {{ 9 = \"p\" }}\n", program("call 0")), "line 8: no processor 9"),
        (format!("{}[[step]]\nrun = {{ 0 = \"p\", 00 = \"p\" }}\n", program("call 0")), "line 8: processor 0 has a program"),
        ("[[step]]\nread = { at = \"0\", len = 4294967295 }\n".to_owned(), "line 1: a read is of"),
        (
            "vps = 64\n[[program]]\nname = \"p\"\ncode = [\"hex ebfe\"]\n".to_owned()
                + &format!("[[step]]\nrun = {{ {} }}\n", (0..64).map(|vp| format!("{vp} = \"p\"")).collect::<Vec<_>>().join(", ")),
            "turns or",
        ),
        ("[[step]]\nexpect = [\"x\"]\n".to_owned(), "line 1: a step has one of"),
        ("[[step]]\nquantum = 1\nread = { at = \"0\", len = 1 }\n".to_owned(), "line 1: order, quantum"),
        ("[[step]]\nrun = {}\nquantum = 0\n".to_owned(), "line 1: quantum is 1 to"),
        ("[[step]]\nwrite = { at = \"0\", bytes = \"x\" }\n".to_owned(), "line 2: "),
        ("[[attack]]\nname = \"no/thing\"\n".to_owned(), "line 2: no attack is called no/thing"),
        ("engine = false\n[[attack]]\nname = \"code/*\"\n".to_owned(), "line 3: attacks of the catalogue"),
    ] {
        let message = message(&text);
        assert!(message.contains(what), "{text}\nsays\n{message}\nnot\n{what}");
    }
    let output = sim(&["run", "no.toml"]);
    assert!(output.status.code() == Some(2) && complained(&output).starts_with("hvci-sim: cannot read no.toml"), "{}", complained(&output));
}

#[test]
fn a_scenario_that_is_cut_short_gives_an_error_or_runs() {
    let text = text("race.toml");
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        drop(Scenario::parse(&text[..end]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Invariant I12.
    #[test]
    fn random_schedules_replay_as_they_were(seed: u64, quantum in 1..40_u64, interrupts: bool) {
        let text = text("race.toml").replace("quantum = 3", &format!("quantum = {quantum}\ninterrupts = {interrupts}"));
        let Played { trace, rows, broken } = played(&text, seed);
        prop_assert!(rows[0].as_expected, "{}", rows[0].result);
        prop_assert!(broken.is_empty());
        let replayed = replay(&read(&bytes(&trace)).unwrap()).unwrap();
        prop_assert_eq!(replayed.difference, None);
        prop_assert!(replayed.trace == trace || bytes(&replayed.trace) == bytes(&trace));
    }

    #[test]
    fn any_bytes_are_read_or_refused(noise in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
        drop(read(&noise));
        drop(Scenario::parse(&String::from_utf8_lossy(&noise)));
        let mut cut = bytes(&RACE);
        cut.truncate(at.index(cut.len()));
        prop_assert!(read(&cut).is_err());
        cut.extend(&noise);
        drop(read(&cut));
    }

    #[test]
    fn a_changed_byte_is_noticed(at: prop::sample::Index, to: u8) {
        let mut changed = bytes(&RACE);
        let at = at.index(changed.len());
        prop_assume!(changed[at] != to);
        changed[at] = to;
        if let Ok(trace) = read(&changed) {
            prop_assert!(trace.edited || replay(&trace).unwrap().difference.is_some());
        }
    }

    #[test]
    fn any_inputs_are_survived(order in prop::collection::vec((any::<prop::sample::Index>(), 0..200_u64), 0..60)) {
        let mut trace = RACE.clone();
        trace.steps = order.into_iter().map(|(which, more)| {
            let mut step = RACE.steps[which.index(RACE.steps.len())].clone();
            if let loader_sim::trace::Input::Run { instructions, .. } = &mut step.input {
                *instructions = more;
            }
            step
        }).collect();
        let once = replay(&trace).unwrap().trace;
        prop_assert_eq!(replay(&once).unwrap().difference, None);
        let broken = once.outputs().find(|line| line.starts_with("{\"broken\""));
        prop_assert_eq!(broken, None);
    }
}
