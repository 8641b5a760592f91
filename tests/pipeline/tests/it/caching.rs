//! Caches that are killed, stopped, shared by many workers, run out of disk or find their files changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use act_cache::Cache;
use pipeline_tests::Scratch;
use sae_types::{FeatureId, HookPoint, SampleId};

/// A checkpoint after every batch of two images; 11 batches.
const CACHE: &str = "images model data --sae sae --batch-size 2 --n-splits 3 --memory 1 --checkpoint-every 0";

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.run("sae-data", "shapes --count 21 --save-dir data");
    for hook in [HookPoint::new("model.layers.1.mlp").unwrap(), HookPoint::layer(2)] {
        scratch.sae("sae", &hook, 128, 64, 4);
    }
    scratch
}

/// Every file of a finished cache but the one that holds times.
fn files(scratch: &Scratch, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let root = scratch.path(folder);
    let mut files = BTreeMap::new();
    for (path, _) in scratch.listing() {
        let Ok(name) = path.strip_prefix(&root) else { continue };
        if path.is_file() && name != Path::new("run.json") {
            files.insert(name.to_string_lossy().into_owned(), fs::read(&path).unwrap());
        }
    }
    files
}

#[track_caller]
fn assert_same(scratch: &Scratch, left: &str, right: &str) {
    let (left_files, right_files) = (files(scratch, left), files(scratch, right));
    assert!(left_files.contains_key("model.layers.2/0_20.safetensors"), "{:?}", left_files.keys());
    assert!(left_files.keys().eq(right_files.keys()), "{:?}\n{:?}", left_files.keys(), right_files.keys());
    for (name, bytes) in &left_files {
        assert!(*bytes == right_files[name], "{name} differs");
    }
    Cache::open(&scratch.path(right)).unwrap().verify().unwrap();
    let listing = scratch.listing();
    let left_over = listing.iter().find(|(path, _)| {
        path.starts_with(scratch.path(&format!("{right}.parts"))) || path.to_string_lossy().contains(".gone-")
    });
    assert!(left_over.is_none(), "{left_over:?} is left");
}

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether `reached` before the child ended.
fn wait_until(child: &mut Running, reached: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_mins(2), "not reached");
        if child.0.try_wait().unwrap().is_some() {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

/// How many checkpoints the first part of one has; the ledger's first line is none.
fn checkpoints(scratch: &Scratch, parts: &str) -> Option<usize> {
    let text = fs::read_to_string(scratch.path(&format!("{parts}/0-of-1/ledger.jsonl"))).ok()?;
    text.lines().count().checked_sub(1)
}

fn spawn(scratch: &Scratch, arguments: &str) -> Running {
    Running(scratch.command("sae-cache", arguments).spawn().unwrap())
}

/// A run that was killed, with some checkpoints in `out.parts`.
fn stopped() -> Scratch {
    let scratch = scratch();
    let mut child = spawn(&scratch, &format!("{CACHE} --save-dir out"));
    assert!(wait_until(&mut child, || checkpoints(&scratch, "out.parts") >= Some(2)));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert!(!scratch.path("out").exists());
    scratch
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_bytes() {
    let scratch = scratch();
    scratch.run("sae-cache", &format!("{CACHE} --save-dir whole"));
    let resume = format!("{CACHE} --save-dir out --resume");
    let (mut kills, mut next) = (0, 1);
    loop {
        let mut child = spawn(&scratch, &resume);
        // At a moment of its own each time: right behind a checkpoint, or in the middle of the next.
        if !wait_until(&mut child, || checkpoints(&scratch, "out.parts") >= Some(next)) {
            assert_eq!(child.0.wait().unwrap().code(), Some(0));
            break;
        }
        sleep(Duration::from_millis(9 * (kills % 5)));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        kills += 1;
        next = checkpoints(&scratch, "out.parts").map_or(usize::MAX, |count| count + 1);
    }
    assert!(kills >= 3, "killed {kills} times only");
    // Killed in its last moments, all that is missing may be the merge, or what follows it.
    scratch.run("sae-cache", &resume);
    assert_same(&scratch, "whole", "out");
    scratch.finish(scratch.command("sae-cache", &resume)).ends_with(0).says(&["finished already"]);
    let other = resume.replace("--batch-size 2", "--batch-size 4");
    scratch.refuses("sae-cache", &other, 1, &["--batch-size", "\"2\"", "\"4\""]);
}

#[test]
fn a_signal_makes_a_checkpoint_and_resume_goes_on_from_it() {
    let scratch = scratch();
    // Never by itself.
    let cache = CACHE.replace("--checkpoint-every 0", "--checkpoint-every 1000 --keep-tokens");
    scratch.run("sae-cache", &format!("{cache} --save-dir whole"));
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let out = format!("out-{name}");
        let mut child = spawn(&scratch, &format!("{cache} --save-dir {out}"));
        let parts = format!("{out}.parts");
        assert!(wait_until(&mut child, || checkpoints(&scratch, &parts).is_some()));
        let kill = format!("kill -{name} {}", child.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(child.0.wait().unwrap().code(), Some(code));
        assert!(checkpoints(&scratch, &parts) == Some(1) && !scratch.path(&out).exists());
        scratch.run("sae-cache", &format!("{cache} --save-dir {out} --resume")).says(&["going on from"]);
        assert_same(&scratch, "whole", &out);
    }
}

#[test]
fn any_number_of_workers_makes_the_same_bytes() {
    let scratch = scratch();
    // One image that is none, so that the lists of bad records are joined as well.
    scratch.images("pictures", 21);
    fs::write(scratch.path("pictures/013.png"), "nothing").unwrap();
    let cache = CACHE.replace(" data ", " pictures ").replace("--batch-size 2", "--batch-size 4 --max-bad 1");
    scratch.run("sae-cache", &format!("{cache} --save-dir one"));
    assert_eq!(scratch.json("one/run.json")["counts"]["bad records"], 1);
    // More workers than the 6 batches there are; every launcher's variables.
    let launchers = [
        ("RANK", "WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ];
    for count in [3, 12] {
        let out = format!("of-{count}");
        for worker in 0..count {
            // Not in order.
            let rank = (worker + 2) % count;
            let (rank_name, size_name) = launchers[worker % launchers.len()];
            let mut command = scratch.command("sae-cache", &format!("{cache} --save-dir {out}"));
            command.env(rank_name, rank.to_string()).env(size_name, count.to_string());
            let run = scratch.finish(command).ends_with(0);
            assert_eq!(scratch.path(&out).exists(), worker + 1 == count, "{run}");
        }
        assert_same(&scratch, "one", &out);
        assert_eq!(scratch.json(&format!("{out}/run.json"))["counts"]["images"], 20);
    }
    assert!(files(&scratch, "one").contains_key("bad_records.jsonl"));
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let scratch = scratch();
    scratch.run("sae-cache", &format!("{CACHE} --save-dir one"));
    let mut command = scratch.command("sae-cache", &format!("{CACHE} --save-dir three"));
    command.env("OMP_NUM_THREADS", "3");
    scratch.finish(command).ends_with(0);
    assert_same(&scratch, "one", "three");
}

#[test]
fn workers_at_the_same_time_merge_once() {
    let scratch = scratch();
    scratch.run("sae-cache", &format!("{CACHE} --save-dir one"));
    let mut workers: Vec<Running> = (0..3)
        .map(|rank| spawn(&scratch, &format!("{CACHE} --save-dir out --rank {rank} --world-size 3")))
        .collect();
    for worker in &mut workers {
        assert_eq!(worker.0.wait().unwrap().code(), Some(0));
    }
    assert_same(&scratch, "one", "out");
}

#[test]
fn a_merge_waits_for_every_part_and_may_be_asked_for_twice() {
    let scratch = scratch();
    scratch.run("sae-cache", &format!("{CACHE} --save-dir one"));
    let worker = |rank: usize| format!("{CACHE} --save-dir out --world-size 3 --rank {rank}");
    scratch.refuses("sae-cache", "merge out", 1, &["out.parts"]);
    scratch.run("sae-cache", &worker(0));
    scratch.run("sae-cache", &worker(2));
    let missing = ["part 2 of 3 is not complete", "run rank 1 again with --resume"];
    scratch.refuses("sae-cache", "merge out", 1, &missing);
    scratch.refuses("sae-cache", &worker(0), 2, &["out.parts", "--resume"]);
    let other = worker(1).replace("--world-size 3", "--world-size 4");
    scratch.refuses("sae-cache", &other, 1, &["out.parts", "--world-size 3"]);
    scratch.run("sae-cache", &format!("{} --resume", worker(2))).says(&["complete already"]);
    // The last worker finds no room for the cache, which somebody else then makes.
    fs::create_dir(scratch.path("out")).unwrap();
    fs::write(scratch.path("out/kept"), "precious").unwrap();
    scratch.refuses("sae-cache", &worker(1), 1, &["out", "--overwrite"]);
    fs::rename(scratch.path("out"), scratch.path("aside")).unwrap();
    scratch.run("sae-cache", &worker(1));
    assert_same(&scratch, "one", "out");
    scratch.run("sae-cache", "merge out").says(&["merged already"]);
    assert_same(&scratch, "one", "out");
}

#[test]
fn a_merge_that_was_killed_is_made_good() {
    let scratch = scratch();
    scratch.run("sae-cache", &format!("{CACHE} --save-dir one"));
    // A worker that cannot merge leaves its part; the cache comes into its place before the parts are gone.
    let blocked = scratch.script(
        &["sh"],
        "\"$@\" & sleep 0.01; while ! [ -e out.parts ]; do sleep 0.01; done; mkdir out; touch out/kept; wait $!",
        "sae-cache",
        &format!("{CACHE} --save-dir out"),
    );
    scratch.finish(blocked).ends_with(1).says(&["out", "--overwrite"]);
    fs::remove_dir_all(scratch.path("out")).unwrap();
    assert!(scratch.path("out.parts").exists());
    fs::rename(scratch.path("one"), scratch.path("out")).unwrap();
    scratch.run("sae-cache", "merge out").says(&["merged already"]);
    assert!(!scratch.path("out.parts").exists());
}

#[test]
fn what_differs_from_the_run_that_was_begun_is_named() {
    let scratch = stopped();
    let resume = format!("{CACHE} --save-dir out --resume");
    let before = scratch.listing();
    scratch.refuses(
        "sae-cache",
        &resume.replace("--batch-size 2", "--batch-size 3"),
        1,
        &["--batch-size", "\"2\"", "\"3\""],
    );
    for (from, to, names) in [
        ("--n-splits 3", "--n-splits 4", "n_splits"),
        ("--resume", "--resume --dtype bf16", "--dtype"),
        ("--resume", "--resume --activation-dtype f16", "dtype"),
        ("--resume", "--resume --max-examples 5", "--max-examples"),
        ("--resume", "--resume --image-root data", "--image-root"),
    ] {
        scratch.refuses("sae-cache", &resume.replace(from, to), 1, &["out.parts", names]);
    }
    scratch.refuses("sae-cache", &format!("{CACHE} --save-dir out"), 2, &["--resume", "--overwrite"]);
    // The weights are the same; what the configuration says of them is not.
    let config = scratch.path("sae/model.layers.2/cfg.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text} ")).unwrap();
    scratch.refuses("sae-cache", &resume, 1, &["cfg.json of model.layers.2"]);
    fs::write(&config, text).unwrap();
    assert_eq!(scratch.listing(), before);
    scratch.run("sae-data", "shapes --count 22 --save-dir more");
    scratch.refuses("sae-cache", &resume.replace(" data ", " more "), 1, &["dataset"]);
    // The same folder with another autoencoder in it.
    fs::remove_dir_all(scratch.path("sae/model.layers.2")).unwrap();
    scratch.sae("sae", &HookPoint::layer(2), 128, 96, 4);
    scratch.refuses("sae-cache", &resume, 1, &["model.layers.2"]);
    scratch.run("sae-cache", &format!("{CACHE} --save-dir out --overwrite"));
    assert!(!scratch.path("out.parts").exists());
}

#[test]
fn files_that_changed_or_do_not_belong_are_named() {
    let scratch = stopped();
    let resume = format!("{CACHE} --save-dir out --resume");
    let runs = |hook: &str| {
        let folder = format!("out.parts/0-of-1/{hook}");
        let entries = fs::read_dir(scratch.path(&folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        format!("{folder}/{}", names.min().expect("a run"))
    };
    let (run, other) = (&runs("model.layers.2"), runs("model.layers.1.mlp"));
    let bytes = fs::read(scratch.path(run)).unwrap();
    fs::write(scratch.path(run), &bytes[..bytes.len() - 4]).unwrap();
    scratch.finish(scratch.command("sae-cache", &resume)).ends_with(1).says(&[run, "SHA-256"]);
    fs::copy(scratch.path(&other), scratch.path(run)).unwrap();
    scratch.finish(scratch.command("sae-cache", &resume)).ends_with(1).says(&[run, "SHA-256"]);
    fs::write(scratch.path(run), &bytes).unwrap();
    let foreign = "out.parts/0-of-1/model.layers.2/holiday.jpg";
    fs::write(scratch.path(foreign), "sun").unwrap();
    scratch.finish(scratch.command("sae-cache", &resume)).ends_with(1).says(&[foreign]);
    fs::remove_file(scratch.path(foreign)).unwrap();
    scratch.run("sae-cache", &resume);
    scratch.run("sae-cache", &format!("{CACHE} --save-dir whole"));
    assert_same(&scratch, "whole", "out");
}

#[test]
fn a_full_disk_costs_nothing_that_was_saved() {
    let scratch = scratch();
    scratch.run("sae-cache", &format!("{CACHE} --save-dir whole"));
    fs::create_dir(scratch.path("disk")).unwrap();
    let namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh"];
    let mount = "mount -t tmpfs -o size=160k tmpfs disk";
    let probe = Command::new(namespace[0])
        .args(&namespace[1..])
        .args(["-c", mount])
        .current_dir(scratch.path(""))
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: mounting a small file system is not permitted here");
        return;
    }
    // It goes on once there is room.
    let script = format!(
        "{mount} || exit 77; \"$@\" && exit 78; ls disk >&2; mount -o remount,size=8m disk; \
         \"$@\" --resume || exit 79; cp -r disk/out out"
    );
    let arguments = format!("{CACHE} --save-dir disk/out");
    let run = scratch.finish(scratch.script(&namespace, &script, "sae-cache", &arguments));
    run.ends_with(0).says(&["No space left on device", "--resume", "out.parts", "going on from"]);
    assert_same(&scratch, "whole", "out");
}

#[test]
fn pieces_of_text_keep_their_tokens() {
    let scratch = Scratch::new();
    scratch.sae("sae", &HookPoint::layer(1), 128, 64, 4);
    let texts: Vec<String> = (0..30)
        .map(|n| format!("{{\"text\": \"what colour is the {} circle ?\"}}", ["red", "blue", "small"][n % 3]))
        .collect();
    fs::write(scratch.path("texts.jsonl"), texts.join("\n")).unwrap();
    let cache = "--sae sae --batch-size 3 --n-splits 2 --checkpoint-every 0";
    let advice = ["plain text", "sae-data text model texts.jsonl"];
    scratch.refuses("sae-cache", &format!("text model texts.jsonl {cache} --save-dir out"), 2, &advice);
    scratch.run("sae-data", "text model texts.jsonl --ctx-len 16 --save-dir tokens");
    scratch.run("sae-cache", &format!("text model tokens {cache} --save-dir out"));
    for rank in [1, 0] {
        let arguments = format!("text model tokens {cache} --save-dir two --rank {rank} --world-size 2");
        scratch.run("sae-cache", &arguments);
    }
    let (one, two) = (files(&scratch, "out"), files(&scratch, "two"));
    assert!(one == two, "{:?}\n{:?}", one.keys(), two.keys());

    let cache = Cache::open(&scratch.path("out")).unwrap();
    cache.verify().unwrap();
    let pieces = scratch.json("tokens/run.json")["counts"]["pieces"].as_u64().unwrap();
    assert_eq!(cache.samples().len() as u64, pieces);
    let bytes = fs::read(scratch.path("tokens/data/train.bin")).unwrap();
    let ids: Vec<u32> =
        bytes.chunks_exact(2).map(|id| u32::from(u16::from_le_bytes([id[0], id[1]]))).collect();
    let kept = cache.tokens().unwrap().expect("token ids");
    for (line, (record, piece)) in cache.samples().iter().zip(ids.chunks_exact(16)).enumerate() {
        assert_eq!(record.id.as_deref(), Some(format!("train.bin:{}", record.sample).as_str()));
        assert_eq!((record.n_tokens, record.has_image()), (16, false));
        assert_eq!(kept.of_line(line), piece);
    }
    // BOS, at the start of every piece, has no codes.
    let hook = cache.hook(&HookPoint::layer(1)).unwrap();
    assert_eq!(cache.manifest().hooks[&HookPoint::layer(1)].tokens, pieces * 15);
    assert!((0..64).flat_map(|n| hook.feature(FeatureId(n)).unwrap().iter().collect::<Vec<_>>()).count() > 0);
    assert!(hook.features().flat_map(|slice| slice.iter().collect::<Vec<_>>()).all(|one| one.token.0 >= 1));
}

#[test]
fn what_is_said_about_images_is_told_from_what_they_show() {
    let scratch = scratch();
    let cache = "text model data --sae sae --batch-size 2 --n-splits 2 --max-examples 5";
    let hook = HookPoint::layer(2);
    let mut tokens = BTreeMap::new();
    for (name, flags) in
        [("text", ""), ("image", "--tokens image"), ("all", "--tokens all"), ("answers", "--roles assistant")]
    {
        scratch.run("sae-cache", &format!("{cache} {flags} --save-dir {name}"));
        let cache = Cache::open(&scratch.path(name)).unwrap();
        cache.verify().unwrap();
        let entry = &cache.manifest().hooks[&hook];
        tokens.insert(name, (entry.tokens, entry.image_tokens));
        let record = cache.sample(SampleId(4)).unwrap();
        let [start, end] = record.image_tokens[0];
        assert!(record.has_image() && start > 1 && end < record.n_tokens, "{record:?}");
        let slices = cache.hook(&hook).unwrap();
        for activation in slices.features().flat_map(|slice| slice.iter().collect::<Vec<_>>()) {
            let [start, end] = cache.sample(activation.sample).unwrap().image_tokens[0];
            let shown = (start..end).contains(&activation.token.0);
            assert!(name == "all" || shown == (name == "image"), "{name}: {activation:?}");
        }
    }
    let (text, image, all, answers) = (tokens["text"], tokens["image"], tokens["all"], tokens["answers"]);
    assert_eq!((text.1, image.1, all.1), (0, image.0, image.0));
    assert_eq!(text.0 + image.0, all.0);
    assert!(answers.0 > 0 && answers.0 < text.0);
}
