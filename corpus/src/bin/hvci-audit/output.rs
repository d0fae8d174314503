//! Where reports go: standard output or files, several at once.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
};

use anyhow::{Context, Result, bail};
use corpus::report::{Audited, Format, Sink, Summary};

use crate::args::OutputArgs;

/// Every report that was asked for.
pub(crate) struct Outputs {
    sinks: Vec<Box<dyn Sink>>,
    /// whether a person reads standard output as it comes
    pub(crate) on_terminal: bool,
}

impl Outputs {
    pub(crate) fn open(args: &OutputArgs) -> Result<Self> {
        let on_stdout = args.output.iter().filter(|o| o.file.is_none()).count();
        if on_stdout > 1 {
            bail!("only one report can go to standard output; give the others a file, for example -o sarif=hvci.sarif");
        }
        let mut sinks = Vec::new();
        for output in &args.output {
            let out: Box<dyn Write + Send> = match &output.file {
                Some(path) => {
                    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                    let out = BufWriter::new(file);
                    if output.format == Format::Human {
                        Box::new(anstream::StripStream::new(Box::new(out) as Box<dyn Write + Send>))
                    } else {
                        Box::new(out)
                    }
                }
                None if output.format == Format::Human => Box::new(BufWriter::new(anstream::AutoStream::auto(io::stdout()))),
                // streamed: a reader sees each line when it is complete
                None if output.format == Format::Ndjson => Box::new(io::LineWriter::new(io::stdout())),
                None => Box::new(BufWriter::new(io::stdout())),
            };
            sinks.push(output.format.sink(out, args.verbose));
        }
        Ok(Self { sinks, on_terminal: on_stdout > 0 && io::stdout().is_terminal() })
    }

    pub(crate) fn record(&mut self, audited: &Audited) -> io::Result<()> {
        self.sinks.iter_mut().try_for_each(|s| s.record(audited))
    }

    pub(crate) fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        self.sinks.iter_mut().try_for_each(|s| s.finish(summary))
    }
}
