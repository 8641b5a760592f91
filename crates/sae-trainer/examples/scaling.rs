//! Prints what docs/scaling.md says of memory and traffic, or the same of another autoencoder.
//!
//! ```text
//! cargo run -p sae-trainer --example scaling
//! cargo run -p sae-trainer --example scaling -- --latents 524288 --k 128 --rows 16384 --ranks 16
//! ```
#![expect(clippy::print_stdout, reason = "a program whose output is its figures")]

use clap::Parser;
use sae_trainer::{DistributionKind, Exchange, Optimizer, StepTraffic, TrainerConfig};
use stage_kit::format_bytes;

/// Print memory and traffic per step of an autoencoder that several ranks train. Without flags: the tables of docs/scaling.md.
#[derive(Parser)]
struct Arguments {
    /// Length of the vectors
    #[arg(long, default_value_t = 4096)]
    d_in: usize,
    /// Latents
    #[arg(long, requires_all = ["rows", "ranks"])]
    latents: Option<usize>,
    /// Latents that a row keeps
    #[arg(long, default_value_t = 256)]
    k: usize,
    /// Rows of an optimizer step, of all ranks together
    #[arg(long, default_value_t = 65_536)]
    rows: usize,
    /// Ranks
    #[arg(long, default_value_t = 8)]
    ranks: usize,
    /// Forward passes that make a step
    #[arg(long, default_value_t = 1)]
    grad_acc_steps: u32,
    /// Parts of each
    #[arg(long, default_value_t = 1)]
    micro_acc_steps: u32,
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(latents) = arguments.latents {
        let case = Case {
            d_in: arguments.d_in,
            latents,
            k: arguments.k,
            rows: arguments.rows,
            ranks: arguments.ranks,
            grad_acc_steps: arguments.grad_acc_steps,
            micro_acc_steps: arguments.micro_acc_steps,
        };
        print!("{}", case.table());
    } else {
        print!("{}", tables().join("\n"));
    }
}

/// The tables of docs/scaling.md.
pub(crate) fn tables() -> [String; 2] {
    let paper = Case {
        d_in: 4096,
        latents: 131_072,
        k: 256,
        rows: 32 * 2048,
        ranks: 8,
        grad_acc_steps: 4,
        micro_acc_steps: 1,
    };
    let wide =
        Case { latents: 1 << 24, rows: 131_072, ranks: 64, grad_acc_steps: 1, micro_acc_steps: 8, ..paper };
    [paper.table(), wide.table()]
}

/// An autoencoder and the ranks that train it.
#[derive(Clone, Copy)]
struct Case {
    d_in: usize,
    latents: usize,
    k: usize,
    /// Of an optimizer step.
    rows: usize,
    ranks: usize,
    grad_acc_steps: u32,
    micro_acc_steps: u32,
}

impl Case {
    fn config(&self) -> TrainerConfig {
        let mut config = TrainerConfig::new(self.d_in, self.latents, self.k, 1000);
        config.optimizer = Optimizer::Adam8bit;
        config.grad_acc_steps = self.grad_acc_steps;
        config.micro_acc_steps = self.micro_acc_steps;
        config
    }

    /// What a rank holds and receives, in one column for each distribution.
    fn table(&self) -> String {
        let &Self { rows, ranks, .. } = self;
        let calls = self.grad_acc_steps as usize;
        let whole = self.config();
        // Gradients are summed once, so that all rows of a step are one call.
        let mut once = whole.clone();
        (once.grad_acc_steps, once.micro_acc_steps) = (1, 1);
        let mut shard = whole.clone();
        shard.num_latents = self.latents.div_ceil(ranks);
        let part = |rows: usize, config: &TrainerConfig| rows.div_ceil(config.micro_acc_steps as usize);
        let data = DistributionKind::Data;
        let columns = [
            Column {
                name: "data, codes",
                held: &whole,
                rows: part(rows / calls, &whole),
                traffic: whole.traffic(data(Exchange::Codes), rows / calls, ranks, 0),
            },
            Column {
                name: "data, gradients",
                held: &once,
                rows: part(rows.div_ceil(ranks), &once),
                traffic: once.traffic(data(Exchange::Gradients), rows, ranks, 0),
            },
            Column {
                name: "latents",
                held: &shard,
                rows: part(rows / calls, &shard),
                traffic: whole.traffic(DistributionKind::Latents, rows / calls, ranks, 0),
            },
        ];
        let mut table = format!(
            "{} latents, d_in {}, k {}, Adam in 8 bits, {rows} rows a step, on {ranks} GPUs:\n\n",
            self.latents, self.d_in, self.k
        );
        let mut line = |cells: [String; 4]| table.extend(["| ", &cells.join(" | "), " |\n"]);
        let [codes, gradients, latents] = columns.each_ref().map(|column| column.name.to_owned());
        line(["each GPU".into(), codes, gradients, latents]);
        line(["---".into(), "---".into(), "---".into(), "---".into()]);
        let mut figures = |name: &str, of: &dyn Fn(&Column<'_>) -> usize| {
            let bytes = |column| match of(column) {
                0 => "-".to_owned(),
                bytes => format_bytes(bytes as u64),
            };
            let [codes, gradients, latents] = columns.each_ref().map(bytes);
            line([name.to_owned(), codes, gradients, latents]);
        };
        figures("holds parameters", &|column| column.held.memory().parameters);
        figures("moments", &|column| column.held.memory().optimizer_state);
        figures("gradients", &|column| column.held.memory().gradients);
        figures("libtorch's own copies", &|column| {
            let memory = column.held.memory();
            memory.gradient_temporaries + memory.pre_activations
        });
        figures("buffers of a step", &|column| column.held.memory().per_token_bytes * column.rows);
        figures("**holds in all**", &|column| column.held.memory().libtorch(column.rows));
        figures("receives vectors", &|column| column.traffic.activations);
        figures("codes", &|column| column.traffic.codes);
        figures("candidates for the top k", &|column| column.traffic.selection);
        figures("gradients", &|column| column.traffic.gradients);
        figures("reconstructions", &|column| column.traffic.reconstructions);
        figures("all else", &|column| column.traffic.marks + column.traffic.rest);
        figures("**in a step, on a ring**", &|column| column.traffic.on_a_ring(ranks));
        table
    }
}

/// A way to share the work out.
struct Column<'a> {
    name: &'static str,
    /// The settings of what a rank holds.
    held: &'a TrainerConfig,
    /// Rows that it works on at once.
    rows: usize,
    traffic: StepTraffic,
}
