//! Second-level tables: map, protect, look up, split; beside `page_table_multiarch` and `x86_64`, which split nothing.

use std::hint::black_box;

use benches::paging::{Multiarch, Ours, Tables, X64};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hvci_engine::{
    access::MapGpaFlags,
    addr::{Frame, Gpn, GpnRange},
    slat::{MemoryType, Slat},
};

const GIB: u64 = 1 << 18;

fn slat(c: &mut Criterion) {
    of::<Ours<false>>(c);
    of::<Ours<true>>(c);
    of::<Multiarch>(c);
    of::<X64>(c);
    large_leaves(c);
}

fn of<T: Tables>(c: &mut Criterion) {
    let mut map = c.benchmark_group("map 64 MiB");
    map.throughput(Throughput::Elements(GIB / 16));
    map.bench_function(T::NAME, |b| b.iter_with_large_drop(|| T::with(GIB / 16).expect("tables")));
    map.finish();

    let mut tables = T::with(GIB).expect("tables");
    for (name, pages) in [("4 KiB", 1), ("60 KiB", 15), ("500 KiB", 125), ("5 MiB", 1_280), ("1 GiB", GIB)] {
        let mut protect = c.benchmark_group(format!("protect {name}"));
        protect.throughput(Throughput::Elements(pages));
        let range = GpnRange { start: Gpn(0), pages };
        let mut writable = true;
        protect.bench_function(T::NAME, |b| {
            b.iter(|| {
                writable = !writable;
                tables.protect(black_box(range), writable).expect("mapped");
            });
        });
        protect.finish();
    }

    let mut lookup = c.benchmark_group("look up in 1 GiB");
    for (name, step) in [("in order", 1), ("at random", 104_729)] {
        let mut gpn = 0;
        lookup.bench_function(BenchmarkId::new(T::NAME, name), |b| {
            b.iter(|| {
                gpn = (gpn + step) % GIB;
                tables.lookup(black_box(Gpn(gpn)))
            });
        });
    }
    lookup.finish();
}

fn large_leaves(c: &mut Criterion) {
    let range = GpnRange { start: Gpn(0), pages: GIB };
    let page = GpnRange { start: Gpn(1_234), pages: 1 };
    let fresh = |span: u64| {
        let slat: Slat = Slat::new(8);
        slat.map(GpnRange { start: Gpn(0), pages: span }, Frame(GIB), MapGpaFlags::DATA, MemoryType::WriteBack).expect("room");
        slat
    };
    let mut group = c.benchmark_group("large leaves");
    for (name, span) in [("2 MiB", GIB / 2), ("1 GiB", GIB)] {
        group.bench_function(BenchmarkId::new("split for one page", name), |b| {
            b.iter_batched_ref(|| fresh(span), |slat| slat.protect(page, MapGpaFlags::CODE).expect("room"), BatchSize::SmallInput);
        });
        group.bench_function(BenchmarkId::new("merge after one page", name), |b| {
            let split = || {
                let slat = fresh(span);
                slat.protect(page, MapGpaFlags::CODE).expect("room");
                slat
            };
            b.iter_batched_ref(split, |slat| slat.protect(page, MapGpaFlags::DATA).expect("room"), BatchSize::SmallInput);
        });
    }
    let slat = fresh(GIB / 2);
    let range = GpnRange { pages: GIB / 2, ..range };
    group.throughput(Throughput::Elements(GIB / 1_024));
    group.bench_function("protect 2 MiB leaves", |b| b.iter(|| slat.protect(black_box(range), MapGpaFlags::DATA).expect("mapped")));
    group.finish();
}

criterion_group!(benches, slat);
criterion_main!(benches);
