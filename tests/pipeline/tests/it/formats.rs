//! Caches in the files of msae and of delphi: written at once, converted, looked at, and read back.

use std::collections::BTreeMap;
use std::fs;

use act_cache::{Activation, Cache};
use pipeline_tests::Scratch;
use sae_types::{FeatureId, HookPoint};

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.images("data", 5);
    scratch.sae("sae", &HookPoint::layer(1), 128, 64, 4);
    scratch
}

/// Every activation of a cache by feature.
fn activations(scratch: &Scratch, folder: &str) -> BTreeMap<FeatureId, Vec<Activation>> {
    let cache = Cache::open(&scratch.path(folder)).unwrap();
    cache.verify().unwrap();
    let layer = cache.hook(&HookPoint::layer(1)).unwrap();
    layer.features().map(|slice| (slice.feature(), slice.iter().collect())).collect()
}

/// The files of a cache of msae's or delphi's.
fn latents(scratch: &Scratch, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = scratch.path(&format!("{folder}/latents/model.layers.1"));
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

#[test]
fn a_cache_goes_out_and_comes_back() {
    let scratch = scratch();
    let stage = "images model data --sae sae --n-splits 4 --activation-dtype f16 --keep-tokens";
    scratch.run("sae-cache", &format!("{stage} --save-dir native"));
    let want = activations(&scratch, "native");
    assert!(want.len() > 20, "{}", want.len());
    for (format, layout) in [("msae", "msae"), ("delphi", "delphi")] {
        // At once, and by way of a native cache: the same files.
        scratch.run("sae-cache", &format!("{stage} --format {format} --save-dir {format}"));
        assert!(!scratch.path(&format!("{format}/manifest.json")).exists());
        let convert = format!("cache native {format}-converted --to {format}");
        let run = scratch.run("sae-convert", &convert);
        assert!(run.stdout.contains("checked"), "{run}");
        assert_eq!(latents(&scratch, format), latents(&scratch, &format!("{format}-converted")));

        let run = scratch.run("sae-cache", &format!("inspect {format} --json"));
        let said: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(said["layout"], layout);
        assert_eq!(said["hooks"]["model.layers.1"]["width"], 64);
        let run = scratch.run("sae-cache", &format!("inspect {format}"));
        assert!(run.stdout.contains("findings"), "{run}");

        let back = format!("cache {format} {format}-back --to native --sae sae --last-latents-kept");
        scratch.run("sae-convert", &back);
        assert_eq!(activations(&scratch, &format!("{format}-back")), want, "{format}");
    }
    // A finished cache is known as such whatever its files are.
    let run = scratch.run("sae-cache", &format!("{stage} --format msae --save-dir msae --resume"));
    assert!(run.stderr.contains("finished already"), "{run}");
    let other = format!("{stage} --format delphi --save-dir msae --resume");
    scratch.refuses("sae-cache", &other, 1, &["--format", "\"msae\""]);
}

#[test]
fn a_lost_file_and_missing_tokens_are_named() {
    let scratch = scratch();
    scratch.run("sae-cache", "images model data --sae sae --n-splits 4 --format msae --save-dir msae");
    // A file that went missing on the way.
    let folder = scratch.path("msae/latents/model.layers.1");
    fs::remove_file(folder.join("16_31.safetensors")).unwrap();
    let run = scratch.finish(scratch.command("sae-cache", "inspect msae")).ends_with(1);
    assert!(run.stdout.contains("error: ") && run.stdout.contains("16"), "{run}");
    scratch.refuses(
        "sae-cache",
        "images model data --sae sae --format delphi --save-dir d",
        2,
        &["--keep-tokens"],
    );
}
