// Small pictures of jobs on their way, for those that asked. What they cost the engine thread is a
// copy of the latents; all else is done beside the files.
#include <utility>

#include "backends/stop_point.h"
#include "runtime/caught.h"
#include "runtime/engine/engine_impl.h"

namespace denoised {
namespace {

constexpr std::chrono::milliseconds kPace(250);  // from one of a job to its next

}  // namespace

// Learns the colours of the first model here that is to have previews and has none yet: a small
// decode, and so a unit by itself. False where there was nothing to learn.
bool EngineImpl::LearnColours(const std::vector<WorkPtr>& works) {
  for (const WorkPtr& work : works) {
    const JobPtr job = JobOf(work);
    if (job == nullptr || !job->request.preview || colours_.contains(job->pipeline)) continue;
    const auto start = std::chrono::steady_clock::now();
    Palette palette;
    const auto error = OnDevice(job.get(), [&] {
      const ScopedStopCheck stop([&] { return WhyStop(*job); });
      palette.colours = &job->pipeline->Colours();
      if (palette.colours->of_channel.empty()) palette.why_not = "this kind of model has none";
    });
    const std::lock_guard lock(mutex_);
    table_.queue.Charge(job->tenant, SecondsSince(start));
    if (error && WhyStop(*job)) return true;  // another job's turn to learn them
    if (error) palette.why_not = error->what();
    colours_[job->pipeline] = palette;
    return true;
  }
  return false;
}

// The last step's is made whatever came before it.
bool EngineImpl::PreviewIsDue(const JobWork& job) const {
  const int64_t done = job.generation->steps_done();
  if (done == job.parameters.num_inference_steps) return true;
  return done % job.request.preview->every_steps == 0 && job.previews_on_way == 0 &&
         clock_() >= job.next_preview;
}

// After a step.
void EngineImpl::MaybePreview(const JobPtr& job) {
  if (!job->request.preview) return;
  const Palette& palette = colours_.find(job->pipeline)->second;
  if (!palette.why_not.empty()) return job->planner->AddNote("no previews: " + palette.why_not);
  if (!PreviewIsDue(*job)) return;
  job->next_preview = clock_() + kPace;
  const auto error = OnDevice(job.get(), [&] {
    HostTensor latents = job->generation->Latents();
    ++job->previews_on_way;
    // The colours are the model's, which the job may leave before they are used.
    encoder_.Post([this, job, model = job->pipeline, colours = palette.colours,
                   step = job->generation->steps_done(),
                   latents = std::move(latents)] { ShowPreview(job, *colours, step, latents); });
  });
  if (error) job->planner->AddNote("no preview: " + std::string(error->what()));
}

// Encoder thread. A job whose latents make no picture keeps its place taken: it is not asked again
// before its last step.
void EngineImpl::ShowPreview(const JobPtr& job, const LatentColours& colours, int64_t step,
                             const HostTensor& latents) {
  const auto error = Caught([&] {
    const auto preview = std::make_shared<const JobPreview>(
        JobPreview{step, EncodePreview(colours, latents, job->request.preview->max_side)});
    --job->previews_on_way;
    store_->Update(job->id, [&](JobSnapshot& snapshot) { snapshot.preview = preview; });
  });
  if (error) logger_->Warning("preview_failed", {{"job", job->id}, {"message", error->what()}});
}

}  // namespace denoised
