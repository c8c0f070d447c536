// A decode in units: what it gives, whatever runs between two of its chunks and however one of them
// ends.
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "backends/error.h"
#include "backends/stop_point.h"
#include "runtime/attention/attention_planner.h"
#include "runtime/models/model_bytes.h"
#include "runtime/models/vae_decoding.h"
#include "runtime/models/wan_vae.h"
#include "runtime/pipelines/device.h"
#include "tests/allocated.h"

namespace denoised {
namespace {

struct Kind {
  LinearNumerics linear;
  int64_t f, h, w, bands;
};

void PrintTo(const Kind& kind, std::ostream* out) {
  *out << LinearNumericsName(kind.linear) << " of " << kind.f << "x" << kind.h << "x" << kind.w
       << " in " << kind.bands << " bands";
}

constexpr LinearNumerics kPacked = LinearNumerics::kPacked, kExact = LinearNumerics::kExact;

// The decoder that ships. It is loaded for packed numerics, so that exact ones are converted.
const WanVaeDecoder& Vae() {
  static const auto vae =
      WanVaeDecoder::Load(ModelFolder(std::filesystem::path(DENOISED_SHAPES) / "vae"), at::kFloat,
                          at::Device(at::kCPU));
  return *vae;
}

at::Tensor Latents(const Kind& kind) {
  const std::vector<int64_t> shape = {1, 8, kind.f, kind.h, kind.w};
  const int64_t numbers = c10::multiply_integers(shape);
  return Vae().Denormalize((at::arange(numbers, at::kFloat) * 78.233).sin().view(shape));
}

// A video that is being decoded, as its job would hold it.
class Job {
 public:
  explicit Job(const Kind& kind)
      : kind_(kind),
        planner_({&BackendRegistry::Default(), &policy_, QueryDevice(at::kCPU)}, {}, &observer_) {
    const ScopedLinearNumerics numerics(kind.linear);
    decoding_ = Vae().Begin(Latents(kind), kind.bands);
    video_ =
        at::full({Vae().FramesOf(kind.f), Vae().PixelsOf(kind.h), Vae().PixelsOf(kind.w), 3}, -9.0);
  }

  VaeDecoding& decoding() { return *decoding_; }
  void Next() {
    Next([](const WanVaeDecoder::Part&) {});
  }
  // `also` sees each part before it is kept.
  void Next(const WanVaeDecoder::Sink& also) {
    ForwardContext context;
    context.attn_metadata = &planner_.Prepare({Vae().Spec(kind_.h, kind_.w)}, 0, 1);
    {
      const ScopedForwardContext scope(context);
      decoding_->Next([&](const WanVaeDecoder::Part& part) {
        also(part);
        const at::Tensor pixels = part.frames.squeeze(0).permute({1, 2, 3, 0});
        video_.narrow(0, part.first_frame, pixels.size(0))
            .narrow(1, part.first_row, pixels.size(1))
            .copy_(pixels);
      });
    }
    planner_.BookForward();
    planner_.Complete();  // each chunk is a unit
  }
  at::Tensor Finish() {
    while (!decoding_->done()) Next();
    return video_;
  }
  uint64_t AttentionCalls() const {
    uint64_t calls = 0;
    for (const ReceiptEntry& entry : planner_.Entries()) calls += entry.calls;
    return calls;
  }

 private:
  const Kind kind_;
  SelectionPolicy policy_{std::nullopt};
  Observer observer_;
  AttentionPlanner planner_;
  std::unique_ptr<VaeDecoding> decoding_;
  at::Tensor video_;
};

// Whether the next chunk has more than so many stop points; the one after them ended it.
bool Stops(Job* job, int points) {
  const ScopedStopCheck check([&]() -> std::optional<Error> {
    return points-- > 0 ? std::nullopt : std::optional(Error(StatusCode::kCancelled, "stopped"));
  });
  try {
    job->Next();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kCancelled);
    return true;
  }
  return false;
}

class Decodings : public testing::TestWithParam<Kind> {};

TEST_P(Decodings, SayTheSizesOfTheirChunksAndDecodeJustThose) {
  const Kind& kind = GetParam();
  Job job(kind);
  int64_t rows = 0, bands = 0;
  while (!job.decoding().done()) {
    int64_t latent = 0, frame = 0;
    rows += job.decoding().NextChunk().rows;
    while (latent < kind.f) {
      ASSERT_FALSE(job.decoding().done());
      const VaeDecoding::Chunk chunk = job.decoding().NextChunk();
      EXPECT_EQ(chunk.columns, kind.w);
      EXPECT_LE(chunk.latent_frames,
                latent == 0 ? 1 : WanVaeDecoder::ChunkFrames(kind.f, kind.h, kind.w));
      int64_t came = 0;
      job.Next([&](const WanVaeDecoder::Part& part) {
        EXPECT_EQ(part.first_frame, frame + came);
        came += part.frames.size(2);
      });
      EXPECT_EQ(came, chunk.video_frames);
      frame += came;
      latent += chunk.latent_frames;
    }
    EXPECT_EQ(latent, kind.f);
    EXPECT_EQ(frame, Vae().FramesOf(kind.f));
    ++bands;
  }
  EXPECT_EQ(rows, kind.h);
  EXPECT_EQ(bands, kind.bands);
  EXPECT_TRUE(at::equal(job.Finish(), Job(kind).Finish()));
  EXPECT_THROW(job.Next(), Error);
}

TEST_P(Decodings, KeepTheirBitsWhereOthersRunBetweenTwoChunks) {
  const at::Tensor alone = Job(GetParam()).Finish();
  Job job(GetParam());
  Job others[] = {Job({kPacked, 2, 9, 7, 2}), Job({kExact, 2, 6, 8, 1}), Job(GetParam())};
  for (int turn = 0; !job.decoding().done(); ++turn) {
    job.Next();
    Job& other = others[turn % 3];
    if (!other.decoding().done()) other.Next();
  }
  EXPECT_TRUE(at::equal(job.Finish(), alone));
  EXPECT_TRUE(at::equal(others[2].Finish(), alone));
}

TEST_P(Decodings, BeginAgainAfterAStopOrASinkThatFails) {
  const at::Tensor alone = Job(GetParam()).Finish();
  struct Case {
    int chunks, stops;
  };
  for (const Case c : {Case{0, 0}, Case{1, 3}, Case{2, 40}}) {
    Job job(GetParam());
    for (int i = 0; i < c.chunks && !job.decoding().done(); ++i) job.Next();
    if (job.decoding().done() || !Stops(&job, c.stops)) continue;
    EXPECT_EQ(job.decoding().NextChunk().video_frames, 1) << "not the first chunk";
    job.Next();
    if (!job.decoding().done()) {
      const auto fail = [](const WanVaeDecoder::Part&) { throw std::runtime_error("full"); };
      EXPECT_THROW(job.Next(fail), std::runtime_error);
      EXPECT_EQ(job.decoding().NextChunk().video_frames, 1) << "not the first chunk";
    }
    EXPECT_TRUE(at::equal(job.Finish(), alone)) << c.chunks << " chunks, " << c.stops << " stops";
  }
}

TEST_P(Decodings, CountTheCallsOfAttentionThatRan) {
  const Kind& kind = GetParam();
  Job job(kind);
  job.Finish();
  const int64_t chunk = WanVaeDecoder::ChunkFrames(kind.f, kind.h, kind.w);
  const int64_t chunks = 1 + (kind.f - 1 + chunk - 1) / chunk;
  // A call for each latent frame of each band; exact, for each chunk.
  const int64_t calls = kind.linear == kExact ? chunks : kind.f * kind.bands;
  EXPECT_EQ(job.AttentionCalls(), static_cast<uint64_t>(calls));
}

TEST_P(Decodings, HoldBetweenTwoChunksWhatTheFormulaSays) {
  const Kind& kind = GetParam();
  if (kind.linear == kExact) GTEST_SKIP() << "its weights are converted, which counts apart";
  Job(kind).Finish();  // what libraries keep from their first use
  Job job(kind);
  const int64_t before = AllocatedBytes();
  job.Next();
  if (!job.decoding().done()) job.Next();
  const int64_t taken = AllocatedBytes() - before;
  if (job.decoding().done()) return;
  const DecodeBytes bytes =
      BytesOfDecode(Vae().config(), {kind.f, kind.h, kind.w, 4, kind.bands}, 0);
  EXPECT_LE(taken, bytes.held + (int64_t{1} << 18));
  EXPECT_GE(taken, bytes.held / 3) << "far more is counted than lies there";
}

INSTANTIATE_TEST_SUITE_P(Vae, Decodings,
                         testing::Values(Kind{kPacked, 1, 8, 8, 1}, Kind{kPacked, 4, 16, 16, 1},
                                         Kind{kPacked, 3, 15, 20, 3}, Kind{kExact, 1, 9, 7, 1},
                                         Kind{kExact, 4, 16, 16, 1}));

}  // namespace
}  // namespace denoised
