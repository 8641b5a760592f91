//! Device and dtype choice: what `--device` and `--dtype` mean.

use std::str::FromStr;

use tch::{Device, Kind};

use crate::NnError;

/// Where tensors live: `cpu`, `cuda` (the first GPU) or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Makes the device usable and returns it.
    ///
    /// A binary linked against libtorch need not have loaded its CUDA half; this does so before libtorch is asked
    /// for GPUs, because its first answer is final.
    ///
    /// # Errors
    /// When CUDA is asked for and its library, driver or the numbered GPU is absent.
    pub fn open(self) -> Result<Device, NnError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(index) => {
                load_cuda_library()?;
                if !tch::Cuda::is_available() {
                    return Err(NnError::NoGpu);
                }
                let count = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
                if index >= count {
                    return Err(NnError::NoSuchGpu { index, count });
                }
                Ok(Device::Cuda(index))
            }
        }
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "loading a shared library runs its initialisers")]
fn load_cuda_library() -> Result<(), NnError> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    // SAFETY: libtorch_cuda.so is libtorch's own plug-in, made to be loaded into a process that holds libtorch; its
    // initialisers register kernels and touch nothing of ours.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|source| NnError::CudaLibrary { source })?;
    // Its kernels stay registered for the life of the process, so it must never be unloaded.
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn load_cuda_library() -> Result<(), NnError> {
    Err(NnError::NoGpu)
}

/// Free and total memory of a GPU in bytes, as its driver counts them for all processes; `None` for every other device, and
/// where the CUDA runtime does not say. Memory that libtorch keeps for its next tensors counts as taken.
///
/// Open the device first ([`DeviceChoice::open`]): that loads the runtime this asks.
pub fn device_memory(device: Device) -> Option<(u64, u64)> {
    match device {
        #[cfg(target_os = "linux")]
        Device::Cuda(index) => cuda::memory(i32::try_from(index).ok()?),
        _ => None,
    }
}

#[cfg(target_os = "linux")]
mod cuda {
    #![expect(unsafe_code, reason = "the CUDA runtime is C")]

    use std::ffi::c_int;

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    /// What the runtime's functions return when all went well.
    const SUCCESS: c_int = 0;

    type GetDevice = unsafe extern "C" fn(*mut c_int) -> c_int;
    type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
    type GetMemory = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;

    /// The runtime that libtorch brought into the process, whatever its file is called, or else an installed one.
    fn runtime() -> Option<Library> {
        let ours = Library::this();
        // SAFETY: the symbol is only looked up, not used.
        if unsafe { ours.get::<GetMemory>(b"cudaMemGetInfo\0") }.is_ok() {
            return Some(ours);
        }
        ["libcudart.so.13", "libcudart.so.12", "libcudart.so"].into_iter().find_map(|name| {
            // SAFETY: NVIDIA's runtime is made to be loaded at any time; its initialisers touch nothing of ours.
            unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.ok()
        })
    }

    pub(super) fn memory(index: c_int) -> Option<(u64, u64)> {
        let runtime = runtime()?;
        let (mut before, mut free, mut total) = (0, 0, 0);
        // SAFETY: the three functions have had these signatures since CUDA 3 (driver_types.h: cudaError_t is an enum, an int in
        // C; cuda_runtime_api.h). They write through pointers to locals that outlive the calls. The thread's current device,
        // which libtorch relies on, is put back.
        let status = unsafe {
            let get_device = runtime.get::<GetDevice>(b"cudaGetDevice\0").ok()?;
            let set_device = runtime.get::<SetDevice>(b"cudaSetDevice\0").ok()?;
            let get_memory = runtime.get::<GetMemory>(b"cudaMemGetInfo\0").ok()?;
            if get_device(&raw mut before) != SUCCESS || set_device(index) != SUCCESS {
                return None;
            }
            let status = get_memory(&raw mut free, &raw mut total);
            let restored = set_device(before);
            if status == SUCCESS { restored } else { status }
        };
        // The runtime stays: unloading it would end what it holds for the process.
        std::mem::forget(runtime);
        (status == SUCCESS).then_some((free as u64, total as u64))
    }
}

impl FromStr for DeviceChoice {
    type Err = NnError;

    fn from_str(text: &str) -> Result<Self, NnError> {
        let unknown = || NnError::UnknownDevice { text: text.to_owned() };
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                number.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// What numbers a model computes in: `f32`, `bf16` or `f16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DtypeChoice {
    /// The same, in libtorch's words.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

impl FromStr for DtypeChoice {
    type Err = NnError;

    fn from_str(text: &str) -> Result<Self, NnError> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(NnError::UnknownDtype { text: text.to_owned() }),
        }
    }
}

impl std::fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_read_back_as_written() {
        for text in ["cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text:?} passed");
        }
        for text in ["f32", "bf16", "f16"] {
            assert_eq!(text.parse::<DtypeChoice>().unwrap().to_string(), text);
        }
        assert!("float32".parse::<DtypeChoice>().is_err());
    }

    #[test]
    fn cuda_is_the_gpu_asked_for_or_an_error_and_never_the_cpu() {
        match DeviceChoice::Cuda(4096).open() {
            Err(NnError::CudaLibrary { .. } | NnError::NoGpu | NnError::NoSuchGpu { index: 4096, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(DeviceChoice::Cpu.open().unwrap(), Device::Cpu);
    }

    #[test]
    fn memory_is_a_gpus_and_of_one_that_exists() {
        assert_eq!(device_memory(Device::Cpu), None);
        assert_eq!(device_memory(Device::Cuda(4096)), None);
        if let Ok(device) = DeviceChoice::Cuda(0).open() {
            let (free, total) = device_memory(device).unwrap();
            assert!(0 < free && free <= total, "{free} of {total}");
        }
    }
}
