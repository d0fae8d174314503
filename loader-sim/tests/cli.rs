//! `hvci-sim` as its users run it.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};

fn sim(args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(args.split(' ')).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_engine_is_explored() {
    let output = sim("explore --pages 2 --frames 1 --vps 2");
    assert_eq!((said(&output), output.status.code()), ("8443 states, 73854 actions\nno invariant is broken\n".to_owned(), Some(0)));
    let output = sim("explore --pages 2 --frames 1 --vps 1 --transactions 2");
    assert!(said(&output).ends_with("no invariant is broken\n"), "{}", said(&output));
}

#[test]
fn a_mistake_is_shown_with_the_shortest_way_to_it() {
    let output = sim("explore --pages 2 --frames 1 --vps 1 --bug one-alias");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("I1: a frame can be written and executed\n  1. transaction 0 of the menu begins\n"), "{text}");
    assert!(text.contains("engine, transaction 0: Open"), "{text}");
}

#[test]
fn wrong_arguments_are_explained() {
    let output = sim("explore --pages 1 --frames 2");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "hvci-sim: --frames 2 needs at least as many --pages\n");
    assert_eq!(sim("explore --bug nothing").status.code(), Some(2));
}

#[test]
fn the_table_of_the_readme_is_what_it_prints() {
    let output = sim("explore --bugs");
    let readme = include_str!("../../README.md");
    assert_eq!(output.status.code(), Some(0));
    assert!(readme.contains(&said(&output)), "{}", said(&output));
}
