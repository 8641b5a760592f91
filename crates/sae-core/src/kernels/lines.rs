//! [`Lines`]: f32 buffers that start at a cache line, so that whole registers do not straddle two.

/// Numbers in whole cache lines; grows, never shrinks.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<Line>);

#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Lines {
    /// The first `len` numbers, of whatever value.
    pub(super) fn numbers(&mut self, len: usize) -> &mut [f32] {
        let needed = len.div_ceil(16);
        if self.0.len() < needed {
            self.0.resize(needed, Line([0.0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }

    /// All numbers there are.
    #[inline(always)]
    pub(super) fn all(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    /// All numbers there are.
    #[inline(always)]
    pub(super) fn all_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
