//! GRUB's script language (GRUB manual, "Shell-like scripting"), as far as configurations that only choose what to start use it: commands,
//! variables, quotes, `if`, functions, blocks of menu entries.
//!
//! Text to commands here, what a command does in [`super`]. Loops (`for`, `while`, `until`), `$(…)` and here-documents are refused: a
//! configuration that needs them cannot be predicted, and guessing would predict wrong PCRs. Work is bounded by the length of the text.

/// Longest configuration that is read, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// How deep blocks may stand in blocks.
const MAX_DEPTH: usize = 32;

/// Why a configuration is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ScriptError {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Words, and the block behind them that a menu entry has.
    Simple { words: Vec<Word>, block: Option<Block> },
    /// Pairs of condition and commands, and those of `else`.
    If { branches: Vec<(Vec<Self>, Vec<Self>)>, otherwise: Vec<Self> },
    /// `function NAME { … }`.
    Function { name: String, body: Vec<Self> },
}

/// Commands in braces, and their text, which is what is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) text: String,
    pub(super) commands: Vec<Command>,
}

/// A word before its variables are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) parts: Vec<Part>,
    /// whether something of it is in quotes: then it is a word even if nothing stands in them
    pub(super) quoted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Variable { name: String, quoted: bool },
}

impl Word {
    /// The text of a word without variables.
    fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }
}

/// Reads a configuration.
pub(super) fn parse(text: &str) -> Result<Vec<Command>, ScriptError> {
    if text.len() > MAX_TEXT {
        return Err(ScriptError { line: 1, problem: format!("longer than {MAX_TEXT} bytes") });
    }
    let mut parser = Parser { text, at: 0, line: 1, depth: 0 };
    let commands = parser.commands(&[])?;
    match parser.peek() {
        None => Ok(commands),
        Some(c) => Err(parser.error(format!("{c:?} is not expected here"))),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    line: usize,
    depth: usize,
}

impl Parser<'_> {
    fn error(&self, problem: impl Into<String>) -> ScriptError {
        ScriptError { line: self.line, problem: problem.into() }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at = self.at.saturating_add(c.len_utf8());
        if c == '\n' {
            self.line = self.line.saturating_add(1);
        }
        Some(c)
    }

    /// Skips blanks, escaped newlines and comments; with `newlines` those and semicolons too.
    fn skip(&mut self, newlines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\r' => {}
                '\n' | ';' if newlines => {}
                '\\' if self.text.get(self.at..).is_some_and(|rest| rest.starts_with("\\\n")) => {
                    self.next();
                }
                '#' => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    /// Commands up to one of the words `ends`, which is left where it is, up to `}`, or to the end of the text.
    fn commands(&mut self, ends: &[&str]) -> Result<Vec<Command>, ScriptError> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH {
            return Err(self.error("blocks stand too deep in one another"));
        }
        let mut commands = Vec::new();
        loop {
            self.skip(true);
            if self.peek().is_none_or(|c| c == '}') || ends.contains(&self.keyword()) {
                break;
            }
            commands.push(self.command()?);
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(commands)
    }

    /// The plain word that stands here, without taking it.
    fn keyword(&self) -> &str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default()
    }

    fn take(&mut self, keyword: &str) -> Result<(), ScriptError> {
        self.skip(true);
        if self.keyword() != keyword {
            return Err(self.error(format!("{keyword} is missing")));
        }
        self.at = self.at.saturating_add(keyword.len());
        Ok(())
    }

    fn command(&mut self) -> Result<Command, ScriptError> {
        match self.keyword() {
            "if" => self.condition(),
            "function" => {
                self.take("function")?;
                self.skip(false);
                let word = self.word()?;
                let name = word.literal().ok_or_else(|| self.error("a function needs a name"))?.to_owned();
                self.skip(true);
                let block = self.block()?.ok_or_else(|| self.error("a function needs a block"))?;
                Ok(Command::Function { name, body: block.commands })
            }
            word @ ("for" | "while" | "until" | "select") => Err(self.error(format!("{word} is not understood here"))),
            _ => self.simple(),
        }
    }

    fn condition(&mut self) -> Result<Command, ScriptError> {
        let (mut branches, mut otherwise) = (Vec::new(), Vec::new());
        self.take("if")?;
        loop {
            let condition = self.commands(&["then"])?;
            self.take("then")?;
            let then = self.commands(&["elif", "else", "fi"])?;
            branches.push((condition, then));
            match self.keyword() {
                "elif" => self.take("elif")?,
                "else" => {
                    self.take("else")?;
                    otherwise = self.commands(&["fi"])?;
                    break;
                }
                _ => break,
            }
        }
        self.take("fi")?;
        Ok(Command::If { branches, otherwise })
    }

    fn simple(&mut self) -> Result<Command, ScriptError> {
        let mut words = Vec::new();
        let mut block = None;
        loop {
            self.skip(false);
            match self.peek() {
                None | Some('\n' | ';' | '}') => break,
                Some('{') => {
                    block = self.block()?;
                    break;
                }
                Some('|' | '&' | '<' | '>') => return Err(self.error("pipes and redirections are not understood")),
                Some(_) => words.push(self.word()?),
            }
        }
        if words.is_empty() {
            return Err(self.error("a block without a command"));
        }
        Ok(Command::Simple { words, block })
    }

    /// `{ … }`, if it stands here.
    fn block(&mut self) -> Result<Option<Block>, ScriptError> {
        if self.peek() != Some('{') {
            return Ok(None);
        }
        let start = self.at;
        self.next();
        let commands = self.commands(&[])?;
        if self.next() != Some('}') {
            return Err(self.error("a block does not end"));
        }
        Ok(Some(Block { text: self.text.get(start..self.at).unwrap_or_default().to_owned(), commands }))
    }

    fn word(&mut self) -> Result<Word, ScriptError> {
        let mut word = Word::default();
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\r' | '\n' | ';' | '{' | '}' | '|' | '&' | '<' | '>' => break,
                '\'' => {
                    self.next();
                    word.quoted = true;
                    loop {
                        match self.next() {
                            Some('\'') => break,
                            Some(c) => push(&mut word, c),
                            None => return Err(self.error("a quote does not end")),
                        }
                    }
                }
                '"' => {
                    self.next();
                    word.quoted = true;
                    self.in_quotes(&mut word)?;
                }
                '\\' => {
                    self.next();
                    match self.next() {
                        Some('\n') | None => {}
                        Some(c) => push(&mut word, c),
                    }
                }
                '$' => self.variable(&mut word, false)?,
                c => {
                    self.next();
                    push(&mut word, c);
                }
            }
        }
        Ok(word)
    }

    fn in_quotes(&mut self, word: &mut Word) -> Result<(), ScriptError> {
        loop {
            match self.peek() {
                None => return Err(self.error("a quote does not end")),
                Some('"') => {
                    self.next();
                    return Ok(());
                }
                Some('$') => self.variable(word, true)?,
                Some('\\') => {
                    self.next();
                    match self.next() {
                        Some(c @ ('"' | '$' | '\\')) => push(word, c),
                        Some('\n') | None => {}
                        Some(c) => {
                            push(word, '\\');
                            push(word, c);
                        }
                    }
                }
                Some(c) => {
                    self.next();
                    push(word, c);
                }
            }
        }
    }

    fn variable(&mut self, word: &mut Word, quoted: bool) -> Result<(), ScriptError> {
        self.next();
        let braces = self.peek() == Some('{');
        if braces {
            self.next();
        }
        let mut name = String::new();
        while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '?' | '@' | '#' | '*')) {
            self.next();
            name.push(c);
            // the special ones, and those of arguments, are one character without braces
            if !braces && !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                break;
            }
        }
        if name.is_empty() || braces && self.next() != Some('}') {
            return Err(self.error("no name of a variable behind $"));
        }
        word.parts.push(Part::Variable { name, quoted });
        Ok(())
    }
}

fn push(word: &mut Word, c: char) {
    match word.parts.last_mut() {
        Some(Part::Text(text)) => text.push(c),
        _ => word.parts.push(Part::Text(c.to_string())),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<Word> {
        match parse(text).unwrap().pop().unwrap() {
            Command::Simple { words, .. } => words,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn words_are_quoted_and_escaped_as_in_a_shell() {
        let text = |t: &str| Part::Text(t.to_owned());
        let variable = |name: &str, quoted| Part::Variable { name: name.to_owned(), quoted };
        let read = words("a'b c'd \"x $y\\\" z\" \\\n  ${root}/k$1x # comment");
        let parts: Vec<&[Part]> = read.iter().map(|w| w.parts.as_slice()).collect();
        assert_eq!(parts[0], [text("ab cd")]);
        assert_eq!(parts[1], [text("x "), variable("y", true), text("\" z")]);
        assert_eq!(parts[2], [variable("root", false), text("/k"), variable("1", false), text("x")]);
        assert_eq!(parts.len(), 3);
    }

    #[test]
    fn blocks_keep_their_text() {
        let menu = "menuentry 'Debian' --class os {\n\tlinux /vmlinuz\n}\n";
        let commands = parse(menu).unwrap();
        let [Command::Simple { words, block: Some(block) }] = commands.as_slice() else { unreachable!("{commands:?}") };
        assert_eq!((words.len(), block.commands.len(), block.text.as_str()), (4, 1, "{\n\tlinux /vmlinuz\n}"));
        let nested = parse("function f { if true; then echo a; elif false; then echo b; else echo c; fi; }").unwrap();
        let [Command::Function { body, .. }] = nested.as_slice() else { unreachable!() };
        assert!(matches!(&body[..], [Command::If { branches, otherwise }] if branches.len() == 2 && otherwise.len() == 1));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for (text, line) in [
            ("set a=1\nfor x in 1; do echo; done", 2),
            ("if true; then echo", 1),
            ("echo 'open", 1),
            ("echo $", 1),
            ("a\n}\n", 2),
            ("echo a | cat", 1),
            ("menuentry a {\n", 2),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
        let deep = "if true; then ".repeat(100);
        assert!(parse(&deep).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ -~\n\"'${}\\\\#;]{0,200}") {
            let _ = parse(&text);
        }
    }
}
