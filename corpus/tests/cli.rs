//! The program as a person or a script meets it: exit status, streams, lists, formats and their schemas.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use corpus::{
    report::{Audited, Format, MAX_RESULTS, Sarif, Sink as _, Summary},
    synth::{self, Written, pki::Pki},
};
use hvci_engine::{
    bytes::Span,
    facts::{Facts, FileKind},
    finding::{Code, Severity},
    policy::{Decision, Finding, Verdict, profile},
    time::UnixTime,
};
use serde_json::{Value, json};

/// The synthetic corpus, and the arguments that every judging of it needs.
struct Corpus {
    written: Written,
    arguments: Vec<OsString>,
}

static CORPUS: LazyLock<Corpus> = LazyLock::new(|| {
    let dir = Box::leak(Box::new(tempfile::tempdir().unwrap()));
    let written = synth::write(&dir.path().join("corpus"), synth::DEFAULT_SEED).unwrap();
    let mut arguments: Vec<OsString> = vec!["--time".into(), written.time.to_string().into()];
    arguments.extend(written.roots.iter().flat_map(|r| ["--roots".into(), r.into()]));
    arguments.extend(written.root_lists.iter().flat_map(|l| ["--roots".into(), l.into()]));
    arguments.extend(written.kernels.iter().flat_map(|k| ["--kernel".into(), k.into()]));
    Corpus { written, arguments }
});

impl Corpus {
    fn image(&self, name: &str) -> PathBuf {
        self.written.images.join(name)
    }
}

fn audit() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hvci-audit"));
    command.env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn run<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Output {
    audit().args(arguments).output().unwrap()
}

/// `scan` with the trust, the catalogs and the time of the synthetic corpus.
fn scanning() -> Command {
    let mut command = audit();
    command.arg("scan").args(&CORPUS.arguments);
    CORPUS.written.catalogs.iter().for_each(|c| {
        command.arg("--catalog").arg(c);
    });
    command
}

fn scan<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Output {
    scanning().args(arguments).output().unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("ended by itself")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The records of `-o ndjson`.
fn records(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn codes(record: &Value) -> BTreeSet<&str> {
    record["findings"].as_array().unwrap().iter().map(|f| f["code"].as_str().unwrap()).collect()
}

fn argument(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

#[test]
fn exit_status_is_0_1_or_2() {
    let good = scan([CORPUS.image("chain/whql.sys")]);
    assert_eq!((status(&good), stderr(&good)), (0, ""));
    assert!(stdout(&good).contains("1 file judged: 1 accepted, 0 refused, 0 unknown"), "{}", stdout(&good));
    assert_eq!(status(&scan([CORPUS.image("container/unsigned.sys")])), 1);
    // unknown is no acceptance: a module without its kernel
    let module = run(["scan".as_ref(), "--no-builtin-roots".as_ref(), CORPUS.image("kernel").as_os_str()]);
    assert_eq!(status(&module), 1, "{}", stdout(&module));

    for (arguments, says) in [
        (&["scan", "--no-such-option", "x"][..], "--no-such-option"),
        (&["scan"], "required"),
        (&["scan", "x", "--profile", "vista"], "windows-kernel"),
        (&["scan", "x", "--time", "yesterday"], "yesterday"),
        (&["scan", "x", "--max-size", "12Q"], "no unit"),
        (&["scan", "x", "--roots", "no/such/file.pem"], "no/such/file.pem"),
        (&["scan", "x", "--kernel", "no/such/vmlinuz"], "no/such/vmlinuz"),
        (&["scan", "x", "--catalog", "no/such/file.cat"], "no/such/file.cat"),
        (&["scan", "--files-from", "no/such/list"], "no/such/list"),
        (&["judge", "no/such/facts"], "no/such/facts"),
        (&["explain", "HVCI-SIG-999"], "no such finding code"),
        (&["explain", "no/such/file.sys"], "no/such/file.sys"),
        (&["fetch", "everything", "x"], "windows-drivers"),
        (&["scan", "x", "-o", "json=no/such/folder/x.json"], "no/such/folder/x.json"),
    ] {
        let output = run(arguments);
        assert_eq!(status(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{arguments:?} does not say {says:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_root_list_limits_whatever_the_order_and_a_forged_one_stops_the_program() {
    let (dir, written) = (tempfile::tempdir().unwrap(), &CORPUS.written);
    let list = written.root_lists[0].as_os_str();
    let images = CORPUS.image("limits");
    let judged = |command: &str, what: &OsStr, roots: &[&OsStr]| {
        let mut all = audit();
        all.arg(command).arg(what).args(["--profile", "windows-user", "-o", "ndjson", "--time", &written.time.to_string()]);
        roots.iter().for_each(|r| {
            all.arg("--roots").arg(r);
        });
        all.output().unwrap()
    };
    let anchors: Vec<&OsStr> = written.roots.iter().map(OsStr::new).collect();
    let free = judged("scan", images.as_ref(), &anchors);
    let last = judged("scan", images.as_ref(), &[&anchors[..], &[list]].concat());
    let first = judged("scan", images.as_ref(), &[&[list], &anchors[..]].concat());
    assert_eq!((status(&free), status(&last)), (0, 1), "{}", stderr(&last));
    assert_eq!(stdout(&last), stdout(&first));
    for code in ["HVCI-PKI-021", "HVCI-PKI-022", "HVCI-PKI-023"] {
        assert!(stdout(&last).contains(code) && !stdout(&free).contains(code), "{code}");
    }

    let facts = dir.path().join("facts");
    let mut save = OsString::from("facts=");
    save.push(&facts);
    run(["scan".as_ref(), images.as_os_str(), "-o".as_ref(), &save]);
    assert_eq!(stdout(&judged("judge", facts.as_ref(), &[&[list], &anchors[..]].concat())), stdout(&last));
    assert_eq!(stdout(&judged("judge", facts.as_ref(), &anchors)), stdout(&free));

    let mut explain = audit();
    explain.arg("explain").arg(CORPUS.image("limits/closing-before.exe")).args(&CORPUS.arguments);
    let explained = explain.output().unwrap();
    assert!(stdout(&explained).contains("root list: not for certificates issued since 2021-01-01"), "{}", stdout(&explained));

    let mut bytes = fs::read(list).unwrap();
    let at = bytes.len() / 8;
    bytes[at] ^= 1;
    fs::write(dir.path().join("forged.stl"), bytes).unwrap();
    fs::write(dir.path().join("not.stl"), b"no list").unwrap();
    for name in ["forged.stl", "not.stl"] {
        let file = dir.path().join(name);
        let output = judged("scan", images.as_ref(), &[&anchors[..], &[file.as_ref()]].concat());
        assert_eq!((status(&output), stdout(&output)), (2, ""));
        assert!(stderr(&output).contains("this root list cannot be believed"), "{}", stderr(&output));
    }
    let output = judged("scan", images.as_ref(), &[list]);
    assert_eq!(status(&output), 2, "its signer is nobody's");
    assert!(stderr(&output).contains("--roots list=FILE"), "{}", stderr(&output));
}

#[test]
fn a_list_of_what_is_refused_goes_before_a_good_signature() {
    let dir = tempfile::tempdir().unwrap();
    let file = CORPUS.image("lint/clean.sys");
    let scan_with = |list: &Path| scan([OsString::from("--block"), list.into(), "-o".into(), "ndjson".into(), (&file).into()]);
    let bytes = fs::read(&file).unwrap();
    let digest: String = {
        let image = synth::authenticode::Table::split(&bytes).unwrap();
        let digest = synth::layout::authentihash(&image.image, hvci_engine::digest::DigestAlg::Sha1).unwrap();
        digest.iter().map(|b| format!("{b:02x}")).collect()
    };
    let list = dir.path().join("block.json");
    // neither form names a file by SHA-1 of its own accord: the list has it calculated
    let loldrivers = json!([{"Id": "4ab3", "KnownVulnerableSamples": [{"Authentihash": {"SHA1": digest, "SHA256": ""}, "SHA256": "00"}]}]);
    for (text, expected) in [
        (json!({"version": 1, "authentihashes": {format!("sha1:{digest}"): "abused"}}), 1),
        (loldrivers, 1),
        (json!({"version": 1, "certificates": [{"tbs": format!("sha1:{}", "00".repeat(20)), "reason": "another"}]}), 0),
    ] {
        fs::write(&list, text.to_string()).unwrap();
        let output = scan_with(&list);
        assert_eq!(status(&output), expected, "{text}: {}{}", stdout(&output), stderr(&output));
        assert_eq!(codes(&records(&output)[0]).contains("HVCI-POL-006"), expected == 1);
    }
    for (text, said) in [("{}", "missing field `version`"), ("[]", "it lists no authentihash"), ("MZ", "no list of what is refused")] {
        fs::write(&list, text).unwrap();
        let output = scan_with(&list);
        assert_eq!(status(&output), 2);
        assert!(stderr(&output).contains(said) && stderr(&output).contains("block.json"), "{}", stderr(&output));
    }
}

#[test]
fn fail_on_sets_what_is_a_failure() {
    let refused = CORPUS.image("container/unsigned.sys");
    let warned = CORPUS.image("signature/nested-attested.sys");
    let noted = CORPUS.image("chain/attested.sys");
    for (file, fail_on, expected) in [
        (&refused, "error", 1),
        (&refused, "never", 0),
        (&warned, "error", 0),
        (&warned, "warning", 1),
        (&noted, "note", 1),
        (&noted, "error", 0),
        (&noted, "never", 0),
    ] {
        let output = scan([file.as_os_str(), "--fail-on".as_ref(), fail_on.as_ref()]);
        assert_eq!(status(&output), expected, "{} --fail-on {fail_on}: {}", file.display(), stdout(&output));
    }
}

#[test]
fn several_reports_are_written_at_once_but_one_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let file = CORPUS.image("chain/whql.sys");
    let mut arguments = vec![file.clone().into_os_string()];
    for (name, _) in Format::ALL {
        arguments.extend(["-o".into(), argument(&format!("{name}="), &dir.path().join(name))]);
    }
    arguments.extend(["-o".into(), "csv".into()]);
    let output = scan(&arguments);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert_eq!(fs::read(dir.path().join("csv")).unwrap(), output.stdout);
    for (name, _) in Format::ALL {
        assert!(fs::metadata(dir.path().join(name)).unwrap().len() > 50, "{name}");
    }

    let twice = scan([file.as_os_str(), "-o".as_ref(), "json".as_ref(), "-o".as_ref(), "csv".as_ref()]);
    assert_eq!((status(&twice), stdout(&twice)), (2, ""));
    assert!(stderr(&twice).contains("only one report can go to standard output"), "{}", stderr(&twice));
    let unknown = scan([file.as_os_str(), "-o".as_ref(), "xml".as_ref()]);
    assert_eq!(status(&unknown), 2);
    assert!(stderr(&unknown).contains("no format; there are human, json, ndjson, csv, sarif, facts"), "{}", stderr(&unknown));
    let nameless = scan([file.as_os_str(), "-o".as_ref(), "json=".as_ref()]);
    assert_eq!(status(&nameless), 2);
}

#[test]
fn a_reader_who_goes_away_is_no_error() {
    let mut child =
        scanning().arg(&CORPUS.written.images).args(["-o", "ndjson"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with('{'));
    let output = child.wait_with_output().unwrap();
    assert_eq!((status(&output), stderr(&output)), (0, ""));
}

#[test]
fn lists_of_files_are_read_by_line_and_by_nul() {
    let names = ["chain/whql.sys", "lint/clean.sys", "container/unsigned.sys"];
    for separator in ["\n", "\0"] {
        let list: String = names.iter().map(|n| format!("{n}{separator}")).collect();
        let mut child = scanning()
            .args(["--files-from", "-", "-o", "ndjson"])
            .current_dir(&CORPUS.written.images)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(status(&output), 1);
        let records = records(&output);
        let paths: Vec<&str> = records.iter().map(|r| r["path"].as_str().unwrap()).collect();
        assert_eq!(paths, names, "the order of the list, separated by {separator:?}");
    }
}

#[test]
fn every_format_is_the_same_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut first: Option<BTreeMap<&str, Vec<u8>>> = None;
    for jobs in ["1", "2", "7"] {
        let mut arguments: Vec<OsString> = vec![".".into(), "--jobs".into(), jobs.into(), "--verbose".into()];
        for (name, _) in Format::ALL {
            arguments.extend(["-o".into(), argument(&format!("{name}="), &dir.path().join(name))]);
        }
        let output = scanning().args(&arguments).current_dir(&CORPUS.written.images).output().unwrap();
        assert_eq!(status(&output), 1, "{}", stderr(&output));
        let written: BTreeMap<&str, Vec<u8>> =
            Format::ALL.into_iter().map(|(name, _)| (name, fs::read(dir.path().join(name)).unwrap())).collect();
        let first = first.get_or_insert_with(|| written.clone());
        for (name, bytes) in &written {
            assert!(first[name] == *bytes, "-o {name} differs with --jobs {jobs}");
        }
    }
}

#[test]
fn a_kernel_may_be_a_unified_kernel_image() {
    let module = CORPUS.image("module/rsa-sha256.ko");
    let scan_with = |kernel: &str| {
        let kernel = CORPUS.image(kernel);
        run(["scan".as_ref(), module.as_os_str(), "--no-builtin-roots".as_ref(), "--kernel".as_ref(), kernel.as_os_str()])
    };
    for kernel in ["kernel/vmlinuz", "kernel/unified.efi"] {
        let output = scan_with(kernel);
        assert_eq!(status(&output), 0, "{kernel}: {}{}", stdout(&output), stderr(&output));
    }
    let output = scan_with("container/driver-sha256.sys");
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("driver-sha256.sys") && stderr(&output).contains(".linux"), "{}", stderr(&output));
}

#[test]
fn what_cannot_be_read_is_a_finding_and_the_rest_is_still_judged() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(CORPUS.image("chain/whql.sys")).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("empty.sys", b"");
    put("head.sys", &whole[..0x100]);
    put("half.sys", &whole[..whole.len() / 2]);
    put("whole.sys", &whole);
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling.sys")).unwrap();
    let names = ["missing.sys", "empty.sys", "head.sys", "half.sys", "dangling.sys", "whole.sys"];
    let paths: Vec<PathBuf> = names.iter().map(|n| dir.path().join(n)).collect();
    let output = scan(paths.iter().map(|p| p.as_os_str()).chain(["-o".as_ref(), "ndjson".as_ref()]));
    assert_eq!(status(&output), 1, "{}", stderr(&output));
    let records = records(&output);
    let seen: BTreeMap<&str, (&str, BTreeSet<&str>)> = records
        .iter()
        .map(|r| {
            (Path::new(r["path"].as_str().unwrap()).file_name().unwrap().to_str().unwrap(), (r["decision"].as_str().unwrap(), codes(r)))
        })
        .collect();
    assert_eq!(records.len(), names.len());
    assert!(seen["missing.sys"].1.contains("HVCI-INP-001"), "{seen:?}");
    assert!(seen["dangling.sys"].1.contains("HVCI-INP-001"), "{seen:?}");
    assert!(seen["empty.sys"].1.contains("HVCI-INP-002"), "{seen:?}");
    for broken in ["missing.sys", "empty.sys", "head.sys", "half.sys", "dangling.sys"] {
        assert_eq!(seen[broken].0, "refuse", "{broken}: {seen:?}");
    }
    assert_eq!(seen["whole.sys"].0, "accept");

    let small = scan([dir.path().join("whole.sys").as_os_str(), "--max-size".as_ref(), "1K".as_ref(), "-o".as_ref(), "ndjson".as_ref()]);
    let small = self::records(&small);
    assert!(codes(&small[0]).contains("HVCI-INP-003"), "{small:?}");
}

/// Root may read everything, so the program runs as nobody where the test is root's.
#[cfg(unix)]
#[test]
fn what_may_not_be_read_is_a_finding_and_the_rest_is_still_judged() {
    use std::os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    };
    const NOBODY: u32 = 65_534;
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mode(dir.path(), 0o755);
    let is_root = fs::metadata(dir.path()).unwrap().uid() == 0;

    // what the program reads, and itself, where nobody can reach them
    let program = dir.path().join("hvci-audit");
    fs::copy(env!("CARGO_BIN_EXE_hvci-audit"), &program).unwrap();
    mode(&program, 0o755);
    let root = dir.path().join("root.pem");
    fs::write(&root, synth::anchors(&Pki::new(synth::DEFAULT_SEED).unwrap()).unwrap()["kernel"].as_bytes()).unwrap();
    let drivers = dir.path().join("drivers");
    let closed = drivers.join("closed");
    fs::create_dir_all(&closed).unwrap();
    for name in ["a-first.sys", "closed.sys", "closed/inside.sys", "z-last.sys"] {
        fs::copy(CORPUS.image("chain/whql.sys"), drivers.join(name)).unwrap();
        mode(&drivers.join(name), 0o644);
    }
    mode(&root, 0o644);
    mode(&drivers, 0o755);
    mode(&drivers.join("closed.sys"), 0);
    mode(&closed, 0);

    let scan = |format: &str| {
        let mut command = Command::new(&program);
        command.arg("scan").arg(&drivers).arg("--roots").arg(argument("kernel=", &root));
        command.args(["--time", &CORPUS.written.time.to_string(), "-o", format]).stdin(Stdio::null()).current_dir(dir.path());
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output()
    };
    let (lines, text) = (scan("ndjson"), scan("human"));
    // so that it can be removed
    mode(&closed, 0o755);
    let (lines, text) = match (lines, text) {
        (Ok(lines), Ok(text)) => (lines, text),
        (Err(err), _) | (_, Err(err)) => {
            assert_eq!(err.kind(), std::io::ErrorKind::PermissionDenied, "{err}");
            eprintln!("skipped: nobody may run a program in {}", dir.path().display());
            return;
        }
    };
    assert_eq!((status(&lines), stderr(&lines)), (1, ""));
    let records = records(&lines);
    let seen: Vec<(&str, &str)> = records
        .iter()
        .map(|r| {
            let path = Path::new(r["path"].as_str().unwrap()).strip_prefix(&drivers).unwrap();
            (path.to_str().unwrap(), r["decision"].as_str().unwrap())
        })
        .collect();
    assert_eq!(seen, [("a-first.sys", "accept"), ("closed", "refuse"), ("closed.sys", "refuse"), ("z-last.sys", "accept")]);
    for record in &records[1..3] {
        let finding = &record["findings"][0];
        assert_eq!((&finding["code"], &finding["severity"]), (&json!("HVCI-INP-001"), &json!("error")), "{record}");
        assert!(finding["detail"].as_str().unwrap().to_lowercase().contains("permission denied"), "{finding}");
    }
    for part in ["drivers/closed.sys", "drivers/closed  ", Code::InputUnreadable.advice()] {
        assert!(stdout(&text).contains(part), "{part:?} is not in\n{}", stdout(&text));
    }
}

#[test]
fn a_package_inside_a_package_is_looked_into() {
    let dir = tempfile::tempdir().unwrap();
    let image = fs::read(CORPUS.image("chain/whql.sys")).unwrap();
    let tar = |name: &str, bytes: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
        tar.into_inner().unwrap()
    };
    let outer = dir.path().join("outer.tar");
    fs::write(&outer, tar("inner.tar", &tar("drivers/whql.sys", &image))).unwrap();
    let output = scan([outer.as_os_str(), "-o".as_ref(), "ndjson".as_ref()]);
    let records = records(&output);
    assert_eq!((status(&output), records.len()), (0, 1), "{}", stdout(&output));
    assert_eq!(records[0]["path"], format!("{}!/inner.tar!/drivers/whql.sys", outer.display()));
    assert_eq!(records[0]["decision"], "accept");
}

#[test]
fn json_lines_and_facts_are_what_their_schemas_say() {
    let dir = tempfile::tempdir().unwrap();
    let [json, ndjson, facts] = ["json", "ndjson", "facts"].map(|n| dir.path().join(n));
    let arguments = [CORPUS.written.images.clone().into_os_string()].into_iter().chain(
        [("json=", &json), ("ndjson=", &ndjson), ("facts=", &facts)].into_iter().flat_map(|(p, path)| ["-o".into(), argument(p, path)]),
    );
    assert_eq!(status(&scan(arguments)), 1);

    let schema_of = |name: &str| -> Value {
        let output = run(["schema", name]);
        assert_eq!(status(&output), 0);
        serde_json::from_str(stdout(&output)).unwrap()
    };
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let report = schema_of("report");
    let document: Value = serde_json::from_str(&read(&json)).unwrap();
    let validate = |schema: &Value, instance: &Value| {
        let validator = jsonschema::validator_for(schema).unwrap();
        let errors: Vec<String> = validator.iter_errors(instance).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{}", errors.join("\n"));
    };
    validate(&report, &document);
    // a flat file that no catalog lists is passed over, but counted
    let skipped = usize::try_from(document["summary"]["skipped"].as_u64().unwrap()).unwrap();
    assert_eq!(document["records"].as_array().unwrap().len() + skipped, CORPUS.written.files);
    let broken = json!({ "schema_version": 1, "records": [{}], "summary": document["summary"] });
    assert!(!jsonschema::validator_for(&report).unwrap().is_valid(&broken), "the schema asks for nothing");

    let mut record = report.clone();
    record["$ref"] = json!("#/$defs/ReportRecord");
    for key in ["properties", "required", "type", "title"] {
        record.as_object_mut().unwrap().remove(key);
    }
    let (lines, line) = (read(&ndjson), schema_of("facts"));
    let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(Value::Array(lines.clone()), document["records"]);
    lines.iter().for_each(|l| validate(&record, l));
    read(&facts).lines().for_each(|l| validate(&line, &serde_json::from_str(l).unwrap()));
}

#[test]
fn saved_facts_are_judged_as_the_files_were() {
    let dir = tempfile::tempdir().unwrap();
    let facts = dir.path().join("facts");
    let save = argument("facts=", &facts);
    for profile in ["auto", "hvci"] {
        let scanned = scan([
            CORPUS.written.images.as_os_str(),
            "-p".as_ref(),
            profile.as_ref(),
            "-o".as_ref(),
            "ndjson".as_ref(),
            "-o".as_ref(),
            &save,
        ]);
        let judged = audit().arg("judge").args(&CORPUS.arguments).arg(&facts).args(["-p", profile, "-o", "ndjson"]).output().unwrap();
        assert_eq!((status(&scanned), status(&judged)), (1, 1), "{}", stderr(&judged));
        assert_eq!(stdout(&scanned), stdout(&judged), "{profile}");
    }
    // what one profile's scan saved holds for another's
    let hvci = scan([CORPUS.image("lint/wx-init.sys").as_os_str(), "-o".as_ref(), "ndjson".as_ref(), "-o".as_ref(), &save]);
    assert_eq!(records(&hvci)[0]["decision"], "accept");
    let judged = audit().arg("judge").args(&CORPUS.arguments).arg(&facts).args(["-p", "hvci", "-o", "ndjson"]).output().unwrap();
    assert_eq!(records(&judged)[0]["decision"], "refuse");
    assert!(codes(&records(&judged)[0]).contains("HVCI-IMG-011"));

    fs::write(&facts, "{\"path\": 1}\n").unwrap();
    let broken = run(["judge".as_ref(), facts.as_os_str()]);
    assert_eq!(status(&broken), 2);
    assert!(stderr(&broken).contains("line 1") && stderr(&broken).contains("-o facts=FILE"), "{}", stderr(&broken));

    // a bad line later costs only itself
    scan([CORPUS.image("lint/clean.sys").as_os_str(), "-o".as_ref(), &save]);
    let good = fs::read_to_string(&facts).unwrap();
    fs::write(&facts, format!("{good}{{\"path\": 1}}\n{good}")).unwrap();
    let judged = audit().arg("judge").args(&CORPUS.arguments).arg(&facts).args(["-o", "ndjson"]).output().unwrap();
    let records = records(&judged);
    let decisions: Vec<&str> = records.iter().map(|r| r["decision"].as_str().unwrap()).collect();
    assert_eq!((status(&judged), decisions), (1, vec!["accept", "refuse", "accept"]));
    assert!(codes(&records[1]).contains("HVCI-INP-009") && records[1]["path"].as_str().unwrap().ends_with("line 2"));
}

#[test]
fn csv_has_a_header_and_a_row_a_file() {
    let output = scan([CORPUS.image("chain").as_os_str(), "-o".as_ref(), "csv".as_ref()]);
    let mut reader = csv::Reader::from_reader(output.stdout.as_slice());
    let columns = [
        "path",
        "decision",
        "profile",
        "kind",
        "publisher",
        "signing_time",
        "authentihash",
        "file_version",
        "size",
        "errors",
        "warnings",
        "codes",
    ];
    assert_eq!(reader.headers().unwrap(), columns.as_slice());
    let rows = reader.records().map(Result::unwrap).count();
    assert_eq!(rows, fs::read_dir(CORPUS.image("chain")).unwrap().count());
}

#[test]
fn sarif_is_sarif() {
    let output = scan([CORPUS.written.images.as_os_str(), "-o".as_ref(), "sarif".as_ref()]);
    let log: serde_sarif::sarif::Sarif = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(log.version, json!("2.1.0"));
    let [run] = log.runs.as_slice() else { panic!("{} runs", log.runs.len()) };
    let rules = run.tool.driver.rules.as_ref().unwrap();
    assert_eq!(rules.len(), Code::ALL.len());
    let results = run.results.as_ref().unwrap();
    assert!(results.len() > CORPUS.written.files / 2);
    for result in results {
        let rule = &rules[usize::try_from(result.rule_index.unwrap()).unwrap()];
        assert_eq!(result.rule_id.as_deref(), Some(rule.id.as_str()));
        assert!(result.message.text.as_ref().is_some_and(|t| !t.is_empty()));
        assert_eq!(result.locations.as_ref().map(Vec::len), Some(1));
    }
}

/// Where the schema of SARIF 2.1.0 (OASIS) is: the package `serde-sarif` carries it.
fn sarif_schema() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let version = Command::new(&cargo).arg("-vV").output().unwrap();
    let host = String::from_utf8(version.stdout).unwrap().lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)).unwrap();
    let output = Command::new(cargo)
        // packages for other machines were never downloaded
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", &host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = metadata["packages"].as_array().unwrap().iter().find(|p| p["name"] == "serde-sarif").unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("src").join("schema.json")
}

/// What Python's `jsonschema` has against a log; `None` when it is not there.
fn errors_of_python(schema: &Path, log: &Path) -> Option<String> {
    const NOT_THERE: i32 = 77;
    const SCRIPT: &str = "
import json, sys
try:
    import jsonschema
except ImportError:
    sys.exit(77)
schema, log = (json.load(open(name, encoding='utf-8')) for name in sys.argv[1:])
for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(log):
    print('/'.join(map(str, error.absolute_path)), error.message[:300])
";
    let output = Command::new("python3").args(["-c", SCRIPT]).args([schema, log]).output().ok()?;
    if status(&output) == NOT_THERE {
        return None;
    }
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    Some(stdout(&output).to_owned())
}

#[test]
fn sarif_is_what_its_schema_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.sarif");
    let schema_file = sarif_schema();
    // two patterns have a bracket too many, which the Rust validator takes for no regular expression
    let schema = fs::read_to_string(&schema_file).unwrap().replace("-[a-zA-Z]{2}]?$", "(-[a-zA-Z]{2})?$");
    let schema: Value = serde_json::from_str(&schema).unwrap();
    assert!(schema["title"].as_str().unwrap().contains("(SARIF) Version 2.1.0"), "{}", schema["title"]);
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let starter = run(["scan", "--starter", "-o", "sarif"]);
    // profiles make other severities of the same codes, and a path is no URI yet
    let whole = |profile: &str| {
        let nowhere = CORPUS.image("no/such folder/ä%[x].sys");
        scan([CORPUS.written.images.as_os_str(), nowhere.as_os_str(), "-o".as_ref(), "sarif".as_ref(), "-p".as_ref(), profile.as_ref()])
    };
    let mut levels = BTreeSet::new();
    for output in [starter, whole("auto"), whole("hvci")] {
        assert_eq!(status(&output), 1, "{}", stderr(&output));
        let log: Value = serde_json::from_slice(&output.stdout).unwrap();
        let errors: Vec<String> = validator.iter_errors(&log).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{}", errors.join("\n"));
        fs::write(&file, &output.stdout).unwrap();
        match errors_of_python(&schema_file, &file) {
            Some(errors) => assert_eq!(errors, ""),
            None => eprintln!("skipped: Python's jsonschema is not installed, only the Rust one was asked"),
        }
        let results = log["runs"][0]["results"].as_array().unwrap();
        assert!(!results.is_empty());
        levels.extend(results.iter().map(|r| r["level"].as_str().unwrap().to_owned()));
        // the schema asks for something
        for (field, value) in [("level", json!("bad")), ("locations", json!([{ "physicalLocation": 1 }])), ("message", json!({}))] {
            let mut broken = log.clone();
            broken["runs"][0]["results"][0][field] = value;
            assert!(!validator.is_valid(&broken), "{field}");
        }
    }
    // unknown is an error here, and notes are left out
    assert_eq!(levels.iter().map(String::as_str).collect::<Vec<_>>(), ["error", "warning"]);
}

#[test]
fn sarif_keeps_the_worst_findings_and_says_how_many_it_left_out() {
    let mut out = Vec::new();
    let mut summary = Summary::default();
    {
        let mut sarif = Sarif::new(Box::new(&mut out));
        for number in 0..MAX_RESULTS + 10 {
            // the errors come last, and still must be kept
            let (code, severity) =
                if number < MAX_RESULTS { (Code::ImageNoNxCompat, Severity::Warning) } else { (Code::SigNone, Severity::Error) };
            let audited = Audited {
                path: format!("drivers/{number}.sys"),
                facts: Facts::new(1, FileKind::PeDriver),
                verdict: Verdict {
                    profile: "hvci".into(),
                    time: UnixTime(0),
                    decision: Decision::Refuse,
                    publisher: None,
                    findings: vec![Finding {
                        code,
                        severity,
                        detail: "brackets [0](http://x) are text".into(),
                        span: Some(Span { offset: 1, len: 2 }),
                        subject: None,
                        signature: None,
                    }],
                    signatures: Vec::new(),
                },
            };
            summary.add(&audited);
            sarif.record(&audited).unwrap();
        }
        sarif.finish(&summary).unwrap();
    }
    let log: Value = serde_json::from_slice(&out).unwrap();
    let run = &log["runs"][0];
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), MAX_RESULTS);
    assert_eq!(results.iter().filter(|r| r["ruleId"] == Code::SigNone.id()).count(), 10);
    let notice = &run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"];
    assert!(notice.as_str().unwrap().starts_with("10 findings were left out"), "{notice}");
    assert!(results[0]["message"]["text"].as_str().unwrap().contains("\\[0\\](http://x)"), "a file's text must become no link");
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(["completions", shell]);
        assert_eq!(status(&output), 0);
        assert!(stdout(&output).contains("hvci-audit") && stdout(&output).contains("starter"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(status(&run(["man".as_ref(), dir.path().join("man").as_os_str()])), 0);
    let pages: BTreeSet<String> =
        fs::read_dir(dir.path().join("man")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for page in ["hvci-audit.1", "hvci-audit-scan.1", "hvci-audit-judge.1", "hvci-audit-explain.1", "hvci-audit-fetch.1"] {
        assert!(pages.contains(page), "{page} is not among {pages:?}");
    }
    for arguments in [&["--help"][..], &["scan", "--help"], &["--version"]] {
        let output = run(arguments);
        assert_eq!((status(&output), stderr(&output)), (0, ""));
    }
    assert!(stdout(&run(["--help"])).contains("Examples:"));
}

#[test]
fn every_code_is_explained_by_number_and_by_name() {
    for code in Code::ALL {
        let output = run(["explain", code.id()]);
        assert_eq!(status(&output), 0, "{}", code.id());
        assert!(stdout(&output).contains(code.title()), "{}", code.id());
    }
    assert_eq!(run(["explain", "HVCI-SIG-004"]).stdout, run(["explain", "authentihash-mismatch"]).stdout);
}

#[test]
fn a_driver_is_explained_with_ranges_path_timestamp_and_every_profile() {
    let output = audit().arg("explain").args(&CORPUS.arguments).arg(CORPUS.image("signature/nested-attested.sys")).output().unwrap();
    assert_eq!((status(&output), stderr(&output)), (0, ""));
    let text = stdout(&output);
    for part in [
        "what the authentihash is over",
        "linear (Windows)",
        "sha256:",
        "embedded 0",
        "nested 0.0",
        "CN=Synthetic Attested Publisher",
        "2023-01-01T00:00:00Z",
        "RFC 3161",
        "1.3.6.1.4.1.311.10.3.5.1",
        "what each profile says",
        "kernel.pem",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    for profile in profile::ALL.iter().filter(|p| p.kinds.contains(&FileKind::PeDriver)) {
        assert!(text.contains(profile.summary), "{} is not in\n{text}", profile.name);
    }

    let output = audit().arg("explain").args(&CORPUS.arguments).arg(CORPUS.image("lint/wx-init.sys")).output().unwrap();
    let (_, why) = stdout(&output).split_once("why they differ").expect("hvci refuses what the kernel alone accepts");
    assert!(why.lines().any(|l| l.trim_start().starts_with("hvci ") && l.contains("[HVCI-IMG-011]") && l.ends_with("(INIT)")), "{why}");
}

#[test]
fn nothing_is_coloured_but_on_a_terminal() {
    let output = scan([CORPUS.written.images.as_os_str(), "--verbose".as_ref()]);
    assert!(!output.stdout.contains(&0x1B) && output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn the_starter_corpus_gives_the_transcript_of_the_readme() {
    let output = run(["scan", "--starter"]);
    assert_eq!((status(&output), stderr(&output)), (1, ""));
    insta::assert_snapshot!("starter", stdout(&output));

    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let Some((_, behind)) = readme.split_once("<!-- transcript: starter -->") else {
        eprintln!("skipped: the README has no <!-- transcript: starter -->");
        return;
    };
    let block = behind.trim_start().strip_prefix("```text\n").expect("a ```text block belongs behind the mark");
    let (transcript, _) = block.split_once("```").expect("the block ends");
    let mut rest = stdout(&output).lines();
    for line in transcript.trim_end().lines().filter(|l| *l != "[…]") {
        assert!(rest.any(|l| l == line), "the README shows a line that the program does not print, or not there:\n{line}");
    }
}
