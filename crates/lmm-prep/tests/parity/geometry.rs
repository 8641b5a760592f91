//! The anyres arithmetic against transformers for thousands of sizes, and against its own invariants for more.

use lmm_prep::{Size, TileGrid, best_canvas, fitted_size};
use proptest::prelude::*;
use safetensors::SafeTensors;

use crate::support::{integers, read};

fn size(height: i32, width: i32) -> Size {
    Size { height: height as u32, width: width as u32 }
}

#[test]
fn every_size_gets_the_grid_transformers_gives_it() {
    let bytes = read("geometry/case.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["v16", "odd", "tiny"] {
        let (_, pinpoints) = integers(&tensors, &format!("{name}.pinpoints"));
        let canvases: Vec<Size> = pinpoints.chunks_exact(2).map(|pair| size(pair[0], pair[1])).collect();
        let (_, sides) = integers(&tensors, &format!("{name}.side_and_patch"));
        let (tile, per_side) = (sides[0] as usize, (sides[0] / sides[1]) as usize);
        let (shape, table) = integers(&tensors, &format!("{name}.table"));
        assert!(shape[0] > 1000 && shape[1] == 12);
        for row in table.chunks_exact(12) {
            let image = size(row[0], row[1]);
            let canvas = best_canvas(image, &canvases);
            assert_eq!(canvas, size(row[2], row[3]), "{name}: canvas of {image}");
            assert_eq!(fitted_size(image, canvas), size(row[4], row[5]), "{name}: fitted size of {image}");
            let grid = TileGrid::new(image, &canvases, tile, per_side);
            let tiles = (grid.rows_of_tiles as i32, grid.cols_of_tiles as i32);
            assert_eq!(tiles, (row[6], row[7]), "{name}: tiles of {image}");
            let high = (grid.high().0 as i32, grid.high().1 as i32);
            assert_eq!(high, (row[8], row[9]), "{name}: kept patches of {image}");
            let corner = grid.keep_rows.start * grid.canvas().1 + grid.keep_cols.start;
            if row[10] >= 0 {
                assert_eq!(corner as i32, row[10], "{name}: first kept patch of {image}");
            }
            assert_eq!(grid.n_tokens() as i32, row[11], "{name}: tokens of {image}");
        }
    }
}

/// Kept pixels of an image scaled to fit a canvas, in exact integer arithmetic.
fn kept_exactly(image: Size, canvas: Size) -> u64 {
    let (h, w) = (u64::from(image.height), u64::from(image.width));
    let (ch, cw) = (u64::from(canvas.height), u64::from(canvas.width));
    // scale = min(cw / w, ch / h)
    let (rows, cols) = if cw * h < ch * w { (h * cw / w, cw) } else { (ch, w * ch / h) };
    (rows * cols).min(h * w)
}

fn canvases() -> impl Strategy<Value = (usize, Vec<Size>)> {
    let tiles = proptest::collection::vec((1..5u32, 1..5u32), 1..8);
    (prop_oneof![Just(336u32), Just(384), 1..64u32], tiles).prop_map(|(side, tiles)| {
        let sizes = tiles.into_iter().map(|(rows, cols)| Size { height: rows * side, width: cols * side });
        (side as usize, sizes.collect())
    })
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![1..40u32, 1..700u32, 1..5000u32]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_geometry_keeps_its_promises(
        height in length(), width in length(), (side, canvases) in canvases(), per_side in 1..30usize,
    ) {
        let image = Size { height, width };
        let canvas = best_canvas(image, &canvases);

        // Nothing keeps more pixels, but for the one row and column that double rounding may cost at the cut.
        let kept = kept_exactly(image, canvas);
        let most = canvases.iter().map(|&other| kept_exactly(image, other)).max().unwrap();
        let slack = u64::from(canvas.height) + u64::from(canvas.width);
        prop_assert!(kept + slack >= most, "{image} on {canvas}: {kept} of {most}");

        // It fits, fills one side, and has the image's aspect ratio up to the pixel that rounding up adds.
        let fitted = fitted_size(image, canvas);
        prop_assert!(fitted.height >= 1 && fitted.width >= 1);
        prop_assert!(fitted.height <= canvas.height && fitted.width <= canvas.width);
        prop_assert!(fitted.height == canvas.height || fitted.width == canvas.width);
        let cross = |a: u32, b: u32| i128::from(a) * i128::from(b);
        let (h, w) = (i128::from(height), i128::from(width));
        if fitted.width == canvas.width && fitted.height < canvas.height {
            let excess = cross(fitted.height, width) - cross(height, canvas.width);
            prop_assert!((0..=w).contains(&excess), "{image} fitted to {fitted}");
        } else if fitted.height == canvas.height && fitted.width < canvas.width {
            let excess = cross(fitted.width, height) - cross(width, canvas.height);
            prop_assert!((0..=h).contains(&excess), "{image} fitted to {fitted}");
        }

        let grid = TileGrid::new(image, &canvases, side, per_side);
        prop_assert_eq!(grid.n_tiles(), 1 + grid.rows_of_tiles * grid.cols_of_tiles);
        prop_assert_eq!(
            (grid.rows_of_tiles * side, grid.cols_of_tiles * side),
            (canvas.height as usize, canvas.width as usize)
        );
        let (rows, cols) = grid.canvas();
        for (kept, whole) in [(&grid.keep_rows, rows), (&grid.keep_cols, cols)] {
            prop_assert!(kept.end <= whole);
            prop_assert_eq!(kept.start, whole - kept.end, "centred");
        }
        // One axis is whole; the other loses only what the padding covers, and keeps what a patch is made of.
        let (high_rows, high_cols) = grid.high();
        prop_assert!(high_rows == rows || high_cols == cols);
        prop_assert_eq!(grid.n_tokens(), per_side * per_side + high_rows * (high_cols + 1));
        let content = |length: u64, across: u64, whole: usize| length as f64 * whole as f64 / across as f64;
        let patches = if high_cols == cols && high_rows < rows {
            (high_rows, content(height.into(), width.into(), cols))
        } else {
            (high_cols, content(width.into(), height.into(), rows).min(cols as f64))
        };
        prop_assert!((patches.0 as f64 - patches.1).abs() < 2.0, "kept {} of {} patches", patches.0, patches.1);
        if patches.1 >= 1.0 {
            prop_assert!(high_rows > 0 && high_cols > 0, "an image of at least one patch keeps one");
        }
    }
}
