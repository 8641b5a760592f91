//! throw-away
use act_cache::*; use sae_types::*;
#[test] fn speed() {
    let d = tempfile::tempdir().unwrap(); let dir = d.path().join("c");
    let hook = HookPoint::layer(1); let width = 131072usize;
    let mut ds = CacheDescription::default(); ds.token_layout.base = Some(BaseTile{start:1,rows:24,cols:24});
    ds.hooks.insert(hook.clone(), HookDescription{width,k:64,..Default::default()});
    let mut w = CacheWriter::create(&dir, ds, WriterOptions{memory_budget: 64<<20, ..Default::default()}).unwrap();
    let mut s = 1u64; let mut all = vec![];
    for _ in 0..40 { let mut c = SparseCodes::with_capacity(width, 2300, 2300*64);
        for _ in 0..2300 { let mut f: Vec<u32> = (0..64u32).map(|j| { s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); j*2048 + ((s>>33) as u32 & 2047)}).collect(); f.sort(); c.push_row(f.into_iter().map(|f|(FeatureId(f),1.5f32))).unwrap(); }
        all.push(c);}
    let tokens: Vec<u32> = (0..2300).collect();
    let t = std::time::Instant::now();
    for (i,c) in all.iter().enumerate() { w.push(&SampleRecord{sample:SampleId(i as u32), n_tokens:2300,width:9,height:9,..Default::default()}, &[SampleCodes{hook:&hook,tokens:&tokens,codes:c}]).unwrap(); }
    let p = t.elapsed(); let m = w.finish().unwrap();
    eprintln!("push {p:?} total {:?} n {}", t.elapsed(), m.counts.activations);
    let bytes: u64 = m.hooks[&hook].splits.iter().map(|s| std::fs::metadata(dir.join(&s.file)).unwrap().len()).sum();
    eprintln!("{} bytes per activation", bytes as f64 / m.counts.activations as f64);
    let t = std::time::Instant::now(); let c = Cache::open(&dir).unwrap(); let l = c.hook(&hook).unwrap(); eprintln!("open {:?}", t.elapsed());
    let t = std::time::Instant::now(); let x: usize = (0..5000).map(|f| l.feature(FeatureId(f*20)).unwrap().top_samples_by_base_mean(5, Duplicates::Drop).unwrap().len()).sum(); eprintln!("top5 of 5000 {:?} {x}", t.elapsed());
    let t = std::time::Instant::now(); let x = l.statistics().len(); eprintln!("stats {:?} {x}", t.elapsed());
    let t = std::time::Instant::now(); c.verify().unwrap(); eprintln!("verify {:?}", t.elapsed());
}
