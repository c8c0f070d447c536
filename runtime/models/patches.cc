#include "runtime/models/patches.h"

#include <algorithm>

#include "backends/intra_op.h"

namespace denoised {
namespace {

constexpr int64_t kGrainElements = 2 * 1024;  // scattered: each takes several of a row's

// How latents [B, C, F, H, W] are cut.
struct Cut {
  int64_t batch, channels;
  std::array<int64_t, 3> grid;
  PatchSize patch;

  int64_t row() const { return channels * patch[0] * patch[1] * patch[2]; }  // numbers of a token
  int64_t line() const { return grid[2] * patch[2]; }                        // of W
  // Where the line (channel, frame, height) of a batch row begins.
  int64_t Line(int64_t b, int64_t c, int64_t f, int64_t h) const {
    return (((b * channels + c) * grid[0] * patch[0] + f) * grid[1] * patch[1] + h) * line();
  }
};

// run(b, t, h) for each line of tokens.
template <typename F>
void ForTokenLines(const Cut& cut, const F& run) {
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (cut.row() * cut.grid[2]));
  ParallelFor(cut.batch * cut.grid[0] * cut.grid[1], grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t frame = i / cut.grid[1];
      run(frame / cut.grid[0], frame % cut.grid[0], i % cut.grid[1]);
    }
  });
}

template <typename T>
void Gather(const Cut& cut, const T* from, T* to) {
  const int64_t pt = cut.patch[0], ph = cut.patch[1], pw = cut.patch[2];
  const int64_t tokens = cut.grid[2], row = cut.row();
  ForTokenLines(cut, [&](int64_t b, int64_t t, int64_t h) {
    T* rows = to + ((b * cut.grid[0] + t) * cut.grid[1] + h) * tokens * row;
    for (int64_t c = 0; c < cut.channels; ++c) {
      for (int64_t i = 0; i < pt; ++i) {
        for (int64_t j = 0; j < ph; ++j, rows += pw) {
          const T* line = from + cut.Line(b, c, t * pt + i, h * ph + j);
          T* part = rows;
          for (int64_t w = 0; w < tokens; ++w, line += pw, part += row) {
            for (int64_t k = 0; k < pw; ++k) part[k] = line[k];
          }
        }
      }
    }
  });
}

template <typename T>
void Scatter(const Cut& cut, const T* from, T* to) {
  const int64_t pt = cut.patch[0], ph = cut.patch[1], pw = cut.patch[2];
  const int64_t tokens = cut.grid[2], row = cut.row(), channels = cut.channels;
  ForTokenLines(cut, [&](int64_t b, int64_t t, int64_t h) {
    const T* rows = from + ((b * cut.grid[0] + t) * cut.grid[1] + h) * tokens * row;
    for (int64_t i = 0; i < pt; ++i) {
      for (int64_t j = 0; j < ph; ++j, rows += pw * channels) {
        for (int64_t c = 0; c < channels; ++c) {
          T* line = to + cut.Line(b, c, t * pt + i, h * ph + j);
          const T* part = rows + c;
          for (int64_t w = 0; w < tokens; ++w, part += row) {
            for (int64_t k = 0; k < pw; ++k) *line++ = part[k * channels];
          }
        }
      }
    }
  });
}

// Runs f with an integer of the tensor's width.
template <typename F>
void ForWidth(const at::Tensor& x, const F& f) {
  if (x.element_size() == 2) return f(uint16_t{});
  if (x.element_size() == 4) return f(uint32_t{});
  TORCH_CHECK(x.element_size() == 8, "patches: no copy for ", x.scalar_type());
  f(uint64_t{});
}

}  // namespace

void TokensFromLatents(const at::Tensor& x, const PatchSize& patch, const at::Tensor& out) {
  const Cut cut{x.size(0),
                x.size(1),
                {x.size(2) / patch[0], x.size(3) / patch[1], x.size(4) / patch[2]},
                patch};
  TORCH_CHECK(x.is_cpu() && x.is_contiguous() && out.is_contiguous() &&
                  x.scalar_type() == out.scalar_type() && x.numel() == out.numel(),
              "patches: wanted dense CPU tensors of one dtype and size");
  ForWidth(x, [&]<typename T>(T) {
    Gather(cut, static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()));
  });
}

at::Tensor LatentsFromTokens(const at::Tensor& rows, const std::array<int64_t, 3>& grid,
                             const PatchSize& patch) {
  const int64_t batch = rows.size(0), channels = rows.size(2) / (patch[0] * patch[1] * patch[2]);
  const std::array<int64_t, 5> sizes = {batch, channels, grid[0] * patch[0], grid[1] * patch[1],
                                        grid[2] * patch[2]};
  if (!rows.is_cpu()) {
    return rows.view({batch, grid[0], grid[1], grid[2], patch[0], patch[1], patch[2], channels})
        .permute({0, 7, 1, 4, 2, 5, 3, 6})
        .reshape(sizes);
  }
  const at::Tensor in = rows.contiguous();
  at::Tensor out = at::empty(sizes, in.options());
  const Cut cut{batch, channels, grid, patch};
  ForWidth(in, [&]<typename T>(T) {
    Scatter(cut, static_cast<const T*>(in.const_data_ptr()),
            static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace denoised
