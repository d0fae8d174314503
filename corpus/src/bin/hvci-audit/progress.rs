//! The progress bar: files, rate and time left, on standard error, only where a person looks.

use std::{
    io::{IsTerminal, stderr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use corpus::source::walk::walk;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(crate) struct Progress {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Progress {
    /// A bar over the files below `paths`, which are counted on the side. Without paths (a list that comes as it comes) there is no end to show.
    pub(crate) fn start(paths: Option<Vec<PathBuf>>, quiet: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        if quiet || !stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), stop };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        bar.set_style(style("{spinner} {pos} files  {binary_bytes} {msg}"));
        bar.enable_steady_tick(Duration::from_millis(200));
        if let Some(paths) = paths {
            let (bar, stop) = (bar.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut total = 0;
                for _ in walk(paths) {
                    total += 1;
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
                bar.set_length(total);
                bar.set_style(style("[{bar:30}] {pos}/{len} files  {per_sec}  {msg}  {eta} left"));
            });
        }
        Self { bar, stop }
    }

    pub(crate) fn advance(&self, files: u64, bytes: u64, all_bytes: &mut u64) {
        *all_bytes += bytes;
        if !self.bar.is_hidden() {
            self.bar.inc(files);
            let seconds = self.bar.elapsed().as_secs_f64().max(0.001);
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = *all_bytes as f64 / seconds / f64::from(1 << 20);
            self.bar.set_message(format!("{rate:.0} MiB/s"));
        }
    }

    /// Writes to standard output without tearing the bar.
    pub(crate) fn suspended<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
