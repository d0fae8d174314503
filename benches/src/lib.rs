//! Side-by-side runs against peers: the engine and other verifiers over the same files, in the same run, in processor time.
//!
//! Absolute times depend on the machine, so nothing here judges one: goals are ratios of two things measured in turn.
//!
//! | module | what |
//! |---|---|
//! | [`cpu`] | processor time and peak memory of this process and of children |
//! | [`set`] | the files of a run |
//! | [`task`] | what is measured inside a process of its own: the engine, its bound, the obvious Rust |
//! | [`peer`] | programs and Python libraries |
//! | [`verdicts`] | which roots a corpus needs; whether osslsigncode says the same |
//! | [`forged`] | forgeries of real files that must not be accepted |
//! | [`goal`] | ratios against what they must be |
//! | [`table`] | aligned text |
//! | [`inputs`] | files made in code, for the criterion benches |
//! | [`obvious`] | what one writes first in Rust |
//! | [`paging`] | page tables of other crates beside [`Slat`](hvci_engine::slat::Slat) |
//! | [`subject`] | signed drivers and modules to load, made in code or real |
//! | [`loading`] | the load path beside what it cannot do without: one SHA-256 and one RSA verification |
//! | [`pages`] | single pages: digests beside that of the whole, first execution |
//! | [`launching`] | a Trusted Launch start beside what it cannot do without; a TPM beside one signature |
//! | [`credentials`] | what the vault's operations cost beside their bare cryptography |
//! | [`guarded`] | what an access costs that the engine is asked about |

pub mod cpu;
pub mod credentials;
pub mod forged;
pub mod goal;
pub mod guarded;
pub mod inputs;
pub mod launching;
pub mod loading;
pub mod obvious;
pub mod pages;
pub mod paging;
pub mod peer;
pub mod set;
pub mod subject;
pub mod table;
pub mod task;
pub mod verdicts;
