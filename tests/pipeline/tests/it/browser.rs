//! The page in a real browser, where there is one.

use std::process::Command;

use pipeline_tests::Scratch;
use sae_types::HookPoint;

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const FEATURES: usize = 6;

fn browser() -> Option<&'static str> {
    let works =
        |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
    BROWSERS.into_iter().find(works)
}

#[test]
fn the_page_is_drawn() {
    let Some(browser) = browser() else {
        eprintln!("skipped: none of {} is installed", BROWSERS.join(", "));
        return;
    };
    let scratch = Scratch::new();
    scratch.sae("sae", &HookPoint::layer(2), 128, 64, 8);
    scratch.run("sae-data", "shapes --count 16 --save-dir data");
    scratch.run("sae-cache", "images model data --sae sae --save-dir cache");
    let arguments = format!("--cache cache --dataset data --features {FEATURES} --out page.html");
    scratch.run("feature-page", &arguments);

    // One start for both: the document after layout on stdout, the picture in a file.
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars", "--window-size=1300,900"])
        .arg(format!("--user-data-dir={}", scratch.path("profile").display()))
        .arg(format!("--screenshot={}", scratch.path("page.png").display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", scratch.path("page.html").display()))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");

    let document = String::from_utf8_lossy(&output.stdout);
    let cards = scratch.read("page.html").matches("<article").count();
    assert!((1..=FEATURES).contains(&cards), "{cards} cards");
    assert_eq!(document.matches("<article").count(), cards, "{stderr}");
    assert_eq!(document.matches("</article>").count(), cards);
    assert!(document.contains("</main>") && document.contains("model.layers.2"));

    let picture = image::open(scratch.path("page.png")).unwrap().into_rgb8();
    assert!(picture.width() >= 1000 && picture.height() >= 600, "{:?}", picture.dimensions());
    // Text and lines are grey; what has a strong colour comes from the scenes and their heat maps.
    let coloured = picture.pixels().filter(|pixel| {
        let [low, high] = [pixel.0.iter().min(), pixel.0.iter().max()].map(|end| end.copied().unwrap_or(0));
        high - low > 60
    });
    let share = coloured.count() as f64 / f64::from(picture.width() * picture.height());
    assert!(share > 0.01, "only {share:.4} of the picture is coloured: the scenes are not drawn");
}
