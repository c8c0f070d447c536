#include "backends/cuda/block_sparse_launch.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "backends/attention_call.h"
#include "backends/cuda/add_coarse_cuda.h"
#include "backends/cuda/block_choice_cuda.h"
#include "backends/cuda/block_means_cuda.h"
#include "backends/cuda/block_sparse_cuda.h"
#include "backends/cuda/block_sparse_int8_cuda.h"
#include "backends/error.h"

namespace denoised {
namespace {

constexpr int64_t kChunk = 8;  // elements that the tensor-core kernel copies at once

std::optional<std::string> DeviceLimits(const DeviceInfo& device) {
  if (device.major == 8 || (device.major == 9 && device.minor == 0)) return std::nullopt;
  return "its CUDA kernel is compiled for compute capability 8.x and 9.0; " + device.name +
         " has " + std::to_string(device.major) + "." + std::to_string(device.minor);
}

// D as neighbours, and for the half kernel in whole chunks of 16 bytes at 16-byte addresses.
at::Tensor Aligned(at::Tensor x) {
  if (x.scalar_type() == at::kFloat) return HeadSizeInside(x);
  const int64_t rest = x.size(3) % kChunk;
  if (rest != 0) x = at::constant_pad_nd(x, {0, kChunk - rest}, 0);
  const bool fits = x.stride(3) == 1 && x.stride(0) % kChunk == 0 && x.stride(1) % kChunk == 0 &&
                    x.stride(2) % kChunk == 0 &&
                    reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

cuda::DeviceView ViewOf(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

void Check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw Error(StatusCode::kInternal, std::string("wanted to launch ") + what +
                                         "; CUDA says: " + cudaGetErrorString(result));
}

at::Tensor UploadInts(const std::vector<int32_t>& values, const at::Device& device) {
  return at::tensor(at::ArrayRef<int32_t>(values), at::kInt).to(device);
}

// Position of each block's first token, and the end.
std::vector<int32_t> Begins(const Partition& partition) {
  std::vector<int32_t> begins = {0};
  for (int32_t length : partition.lengths) begins.push_back(begins.back() + length);
  return begins;
}

// For each of the kernel's blocks, the partition's block that it is a part of.
std::vector<int32_t> BlockOfSpan(const Partition& partition) {
  std::vector<int32_t> block_of;
  for (size_t block = 0; block < partition.lengths.size(); ++block) {
    const int32_t spans = (partition.lengths[block] + kernels::kBlock - 1) / kernels::kBlock;
    block_of.insert(block_of.end(), spans, static_cast<int32_t>(block));
  }
  return block_of;
}

cuda::PooledElement PooledElementOf(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return cuda::PooledElement::kFloat32;
  return x.scalar_type() == at::kBFloat16 ? cuda::PooledElement::kBFloat16
                                          : cuda::PooledElement::kFloat16;
}

// Bytes [B * H, S, Int8RowBytes(D)] and scales [B * H, S] of bfloat16 or float16 [B, S, H, D].
struct Int8Rows {
  at::Tensor bytes, scale;
};

cuda::HalfRows HalfRowsOf(const at::Tensor& x) {
  return {ViewOf(x),
          x.scalar_type() == at::kBFloat16,
          static_cast<int32_t>(x.size(0)),
          static_cast<int32_t>(x.size(2)),
          static_cast<int32_t>(x.size(3)),
          static_cast<int32_t>(x.size(1))};
}

// Mean of each head's rows: [B * H, D] float32.
at::Tensor MeansOfKeys(const at::Tensor& x, cudaStream_t stream) {
  const cuda::HalfRows rows = HalfRowsOf(x);
  const auto options = x.options().dtype(at::kFloat);
  const int64_t heads = x.size(0) * x.size(2);
  at::Tensor sums = at::empty({heads, cuda::SpansOf(rows.length), x.size(3)}, options);
  at::Tensor mean = at::empty({heads, x.size(3)}, options);
  Check(cuda::LaunchKeyMeans(rows, sums.mutable_data_ptr<float>(), mean.mutable_data_ptr<float>(),
                             stream),
        "the kernel of key means");
  return mean;
}

// `mean` is taken off first where it is defined.
Int8Rows Quantise(const at::Tensor& x, const at::Tensor& mean, cudaStream_t stream) {
  const cuda::HalfRows rows = HalfRowsOf(x);
  const int64_t heads = x.size(0) * x.size(2);
  Int8Rows out = {at::empty({heads, x.size(1), cuda::Int8RowBytes(rows.head_size)},
                            x.options().dtype(at::kChar)),
                  at::empty({heads, x.size(1)}, x.options().dtype(at::kFloat))};
  Check(cuda::LaunchInt8Rows(rows, mean.defined() ? mean.const_data_ptr<float>() : nullptr,
                             out.bytes.mutable_data_ptr<int8_t>(),
                             out.scale.mutable_data_ptr<float>(), stream),
        "the kernel of int8 rows");
  return out;
}

// As the int8 kernel counts: two bytes at a time.
cuda::DeviceView ViewOf(const Int8Rows& rows, int64_t heads) {
  const int64_t head = rows.bytes.stride(0) / 2;
  return {rows.bytes.const_data_ptr(), heads * head, rows.bytes.stride(1) / 2, head};
}

// Bytes and scales are freed before the kernel has run, in the order of the stream.
cudaError_t LaunchInt8(const cuda::BlockSparseArgs& call, const at::Tensor& q, const at::Tensor& k,
                       cudaStream_t stream) {
  const Int8Rows query = Quantise(q, {}, stream);
  const Int8Rows key = Quantise(k, MeansOfKeys(k, stream), stream);
  cuda::BlockSparseInt8Args args;
  args.call = call;
  args.call.query = ViewOf(query, call.heads);
  args.call.key = ViewOf(key, call.heads);
  args.query_scale = query.scale.const_data_ptr<float>();
  args.key_scale = key.scale.const_data_ptr<float>();
  args.kv_len = static_cast<int32_t>(k.size(1));
  return cuda::LaunchBlockSparseInt8(args, q.scalar_type() == at::kBFloat16, stream);
}

cudaError_t Launch(const cuda::BlockSparseArgs& args, const at::Tensor& q, const at::Tensor& k,
                   HalfKernel kernel, cudaStream_t stream) {
  if (kernel == HalfKernel::kInt8) return LaunchInt8(args, q, k, stream);
  if (q.scalar_type() == at::kFloat) return cuda::LaunchBlockSparseFloat(args, stream);
  const bool bfloat16 = q.scalar_type() == at::kBFloat16;
  return kernel == HalfKernel::kWgmma ? cuda::LaunchBlockSparseHopper(args, bfloat16, stream)
                                      : cuda::LaunchBlockSparseHalf(args, bfloat16, stream);
}

// Rows of up to 64 elements leave wgmma half of its tile.
HalfKernel FastestKernel(const at::Tensor& query) {
  const cudaDeviceProp* device = at::cuda::getDeviceProperties(query.device().index());
  const bool wgmma = device->major == 9 && device->minor == 0 && query.size(3) > 64;
  return wgmma ? HalfKernel::kWgmma : HalfKernel::kMmaSync;
}

void CheckFits(const AttentionInputs& inputs, HalfKernel kernel) {
  if (inputs.mask.defined() || inputs.causal) {
    throw Error(StatusCode::kFailedPrecondition,
                "wanted neither a mask nor causal attention of the CUDA kernel; got one");
  }
  if (kernel == HalfKernel::kInt8 && inputs.query.scalar_type() == at::kFloat) {
    throw Error(StatusCode::kFailedPrecondition,
                "wanted bfloat16 or float16 of the int8 CUDA kernel; got float32");
  }
}

}  // namespace

std::optional<std::string> CudaKernelLimits(const AttentionSpec& spec, const DeviceInfo& device,
                                            Admission admission) {
  if (auto reason = DeviceLimits(device)) return reason;
  if (spec.dtype != DType::kFloat32 && spec.dtype != DType::kBFloat16 &&
      spec.dtype != DType::kFloat16) {
    return "its CUDA kernel takes float32, bfloat16 and float16; got " +
           std::string(DTypeName(spec.dtype));
  }
  if (spec.head_size < 1 || spec.head_size > cuda::kMaxHeadSize) {
    return "its CUDA kernel takes head sizes up to " + std::to_string(cuda::kMaxHeadSize) +
           "; got " + std::to_string(spec.head_size);
  }
  if (spec.has_mask || spec.causal) return "its CUDA kernel takes no mask and is not causal";
  if (device.major == 9) return std::nullopt;
  return RefuseUnmeasured(admission, "its CUDA kernel for compute capability 8.x");
}

DevicePlan UploadPlan(const kernels::BlockPlan& plan, const at::Device& device) {
  const kernels::FlatPlan flat = kernels::FlatPlan::Flatten(plan);
  const at::Tensor host = at::from_blob(const_cast<std::byte*>(flat.bytes().data()),
                                        {static_cast<int64_t>(flat.bytes().size())}, at::kByte);
  const at::Tensor bytes = host.to(device);
  return {bytes, {}, {}, flat.ViewAt(bytes.const_data_ptr()), plan.covers_queries};
}

at::Tensor BlockSparseForwardCuda(const AttentionInputs& inputs, const DevicePlan& plan,
                                  std::optional<HalfKernel> asked) {
  const HalfKernel kernel = asked.value_or(FastestKernel(inputs.query));
  CheckFits(inputs, kernel);
  const c10::cuda::CUDAGuard guard(inputs.query.device());
  const at::Tensor q = Aligned(inputs.query), k = Aligned(inputs.key), v = Aligned(inputs.value);
  at::Tensor out =
      plan.covers_queries ? at::empty(q.sizes(), q.options()) : at::zeros(q.sizes(), q.options());
  cuda::BlockSparseArgs args;
  args.batch = static_cast<int32_t>(q.size(0));
  args.heads = static_cast<int32_t>(q.size(2));
  args.head_size = static_cast<int32_t>(q.size(3));
  args.q_len = static_cast<int32_t>(q.size(1));
  args.query = ViewOf(q);
  args.key = ViewOf(k);
  args.value = ViewOf(v);
  args.out = out.mutable_data_ptr();
  args.scale = static_cast<float>(SoftmaxScale(inputs));
  args.plan = plan.view;
  Check(Launch(args, q, k, kernel, c10::cuda::getCurrentCUDAStream(q.device().index())),
        "the block-sparse kernel");
  return out.size(3) == inputs.query.size(3) ? out
                                             : out.narrow(3, 0, inputs.query.size(3)).contiguous();
}

DevicePlan DensePlanOnDevice(int64_t q_len, int64_t kv_len, const at::Device& device) {
  const c10::cuda::CUDAGuard guard(device);
  const auto ints = at::TensorOptions(at::kInt).device(device);
  const auto blocks = [](int64_t length) {
    return (length + kernels::kBlock - 1) / kernels::kBlock;
  };
  const auto tokens = [&](int64_t length) {
    const at::Tensor places = at::arange(blocks(length) * kernels::kBlock, ints);
    return places.masked_fill(places.ge(length), -1);
  };
  const at::Tensor queries = tokens(q_len), keys = tokens(kv_len);
  DevicePlan plan;
  plan.bytes =
      at::cat({queries, keys, keys.ge(0).view({-1, kernels::kBlock}).sum({1}, false, at::kInt)});
  plan.view.query_blocks = blocks(q_len);
  plan.view.key_blocks = blocks(kv_len);
  plan.view.query_tokens = plan.bytes.const_data_ptr<int32_t>();
  plan.view.key_tokens = plan.view.query_tokens + queries.numel();
  plan.view.key_lengths = plan.view.key_tokens + keys.numel();
  return plan;
}

DevicePartition::DevicePartition(const Partition& partition, const at::Device& device)
    : order(UploadInts(partition.order, device)),
      begin(UploadInts(Begins(partition), device)),
      blocks(partition.blocks()) {}

DeviceGeometry::DeviceGeometry(const Partition& queries, const Partition& keys,
                               const at::Device& device)
    : queries(queries, device),
      keys(keys, device),
      plan(UploadPlan(PlanBuilder(queries, keys, 0).Take(), device)),
      block_of_row(UploadInts(BlockOfSpan(queries), device)) {}

at::Tensor BlockMeansCuda(const at::Tensor& x, const DevicePartition& partition) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor rows = HeadSizeInside(x);
  at::Tensor means = at::empty({x.size(0) * x.size(2), partition.blocks, x.size(3)},
                               x.options().dtype(at::kFloat));
  cuda::BlockMeansArgs args;
  args.view = ViewOf(rows);
  args.element = PooledElementOf(rows);
  args.batch = static_cast<int32_t>(x.size(0));
  args.heads = static_cast<int32_t>(x.size(2));
  args.head_size = static_cast<int32_t>(x.size(3));
  args.blocks = static_cast<int32_t>(partition.blocks);
  args.order = partition.order.const_data_ptr<int32_t>();
  args.begin = partition.begin.const_data_ptr<int32_t>();
  args.means = means.mutable_data_ptr<float>();
  Check(cuda::LaunchBlockMeans(args, c10::cuda::getCurrentCUDAStream(x.device().index())),
        "the pooling kernel");
  return means;
}

at::Tensor BlockScoresCuda(const at::Tensor& query_means, const at::Tensor& key_means,
                           float divisor, bool bfloat16) {
  const c10::cuda::CUDAGuard guard(query_means.device());
  const at::Tensor queries = query_means.contiguous(), keys = key_means.contiguous();
  at::Tensor scores = at::empty({queries.size(0), queries.size(1), keys.size(1)}, keys.options());
  cuda::BlockScoresArgs args;
  args.queries = queries.const_data_ptr<float>();
  args.keys = keys.const_data_ptr<float>();
  args.heads = static_cast<int32_t>(queries.size(0));
  args.query_blocks = static_cast<int32_t>(queries.size(1));
  args.key_blocks = static_cast<int32_t>(keys.size(1));
  args.head_size = static_cast<int32_t>(queries.size(2));
  args.divisor = divisor;
  args.bfloat16 = bfloat16;
  args.scores = scores.mutable_data_ptr<float>();
  Check(cuda::LaunchBlockScores(args, c10::cuda::getCurrentCUDAStream(queries.device().index())),
        "the kernel of block scores");
  return scores;
}

DevicePlan LargestPlanCuda(const at::Tensor& scores, const DeviceGeometry& geometry,
                           int64_t count) {
  const c10::cuda::CUDAGuard guard(scores.device());
  DevicePlan plan = geometry.plan;
  const int64_t rows = plan.view.query_blocks;
  const auto options = scores.options();
  plan.columns = at::empty({scores.size(0), rows, count}, options.dtype(at::kInt));
  plan.row_begin = at::arange(scores.size(0) * rows + 1, options.dtype(at::kLong)).mul_(count);
  plan.view.lists = scores.size(0);
  plan.view.columns = plan.columns.const_data_ptr<int32_t>();
  plan.view.row_begin = plan.row_begin.const_data_ptr<int64_t>();
  cuda::LargestArgs args;
  args.scores = scores.const_data_ptr<float>();
  args.block = geometry.block_of_row.const_data_ptr<int32_t>();
  args.heads = static_cast<int32_t>(scores.size(0));
  args.blocks = static_cast<int32_t>(scores.size(1));
  args.rows = static_cast<int32_t>(rows);
  args.columns = static_cast<int32_t>(scores.size(2));
  args.count = static_cast<int32_t>(count);
  args.chosen = plan.columns.mutable_data_ptr<int32_t>();
  Check(cuda::LaunchLargest(args, c10::cuda::getCurrentCUDAStream(scores.device().index())),
        "the kernel that chooses blocks");
  return plan;
}

at::Tensor AddCoarseCuda(const at::Tensor& fine, const at::Tensor& coarse, const at::Tensor& gate,
                         const at::Tensor& block_of_token) {
  const c10::cuda::CUDAGuard guard(fine.device());
  const at::Tensor rows = fine.contiguous(), means = coarse.contiguous();
  const at::Tensor factors = gate.defined() ? gate.contiguous() : gate;
  at::Tensor out = at::empty(rows.sizes(), rows.options());
  cuda::AddCoarseArgs args;
  args.element = PooledElementOf(rows);
  args.fine = rows.const_data_ptr();
  args.gate = factors.defined() ? factors.const_data_ptr() : nullptr;
  args.coarse = means.const_data_ptr<float>();
  args.block_of_token = block_of_token.const_data_ptr<int32_t>();
  args.batch = static_cast<int32_t>(rows.size(0));
  args.tokens = static_cast<int32_t>(rows.size(1));
  args.heads = static_cast<int32_t>(rows.size(2));
  args.head_size = static_cast<int32_t>(rows.size(3));
  args.blocks = static_cast<int32_t>(means.size(1));
  args.out = out.mutable_data_ptr();
  Check(cuda::LaunchAddCoarse(args, c10::cuda::getCurrentCUDAStream(fine.device().index())),
        "the kernel that adds the coarse branch");
  return out;
}

}  // namespace denoised
