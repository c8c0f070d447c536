// WanPipeline: prompts to embeddings.
#include <malloc.h>

#include "runtime/models/finite.h"
#include "runtime/pipelines/wan_pipeline.h"
#include "runtime/tokenizer/prompt_clean.h"

namespace denoised {
namespace {

// What a model gives. CheckFinite is for what it is given.
void RequireFinite(const at::Tensor& x, const std::string& message) {
  if (AllFinite(x)) return;
  throw Error(StatusCode::kInternal, message, "", "NON_FINITE");
}

// A forward that does not run takes no time.
AttentionTally WithoutSeconds(AttentionTally tally) {
  for (AttentionCount& count : tally.counts) count.seconds = 0;
  return tally;
}

}  // namespace

WanPipeline::Prompt WanPipeline::Tokenize(const std::string& field, const std::string& prompt,
                                          int64_t max_length) const {
  return {field, tokenizer_->Encode(CleanPrompt(prompt), max_length)};
}

at::Tensor WanPipeline::EncodePrompt(const Prompt& prompt, AttentionPlanner* planner,
                                     Observer* observer) const {
  const Tokenizer::Encoding& tokens = prompt.tokens;
  if (tokens.wanted > tokens.length) {
    planner->AddNote(prompt.field + ": cut at " + std::to_string(tokens.length) + " of " +
                     std::to_string(tokens.wanted) + " tokens (max_sequence_length)");
  }
  const AttentionPlan& plan = planner->Prepare({text_encoder_->Spec(tokens.length)}, 0, 1);
  const AttentionSlot& slot = *plan[static_cast<size_t>(AttentionRole::kTextEncoder)].Of(0);
  const PromptCache::Key key{{tokens.ids.begin(), tokens.ids.begin() + tokens.length},
                             static_cast<int64_t>(tokens.ids.size()),
                             CurrentLinearNumerics(info_.defaults.linear),
                             slot.id};
  const PromptCache::Entry* kept = prompts_.Find(key);
  const at::Tensor embeds =
      kept != nullptr ? kept->embeds : RunTextEncoder(tokens.ids, tokens.length, plan);
  if (kept != nullptr) {
    planner->BookKept(AttentionRole::kTextEncoder, kept->tally);
  } else {
    RequireFinite(embeds,
                  "the text encoder gave numbers that are not finite for the " + prompt.field);
    prompts_.Put(key, {embeds, WithoutSeconds(*slot.tally)});
  }
  observer->OnPrompt(info_.name, /*cached=*/kept != nullptr, prompts_.bytes());
  planner->BookForward();
  planner->RequireBudgets();
  return embeds;
}

TextContext WanPipeline::ContextOf(const at::Tensor& embeds, const Prompt& prompt) const {
  const auto padded_length = static_cast<int64_t>(prompt.tokens.ids.size());
  at::Tensor padded = at::zeros({1, padded_length, embeds.size(2)}, embeds.options());
  padded.narrow(1, 0, embeds.size(1)).copy_(embeds);
  return transformer_->EncodeText(padded.to(device_));
}

// Rows of the `length` real tokens, on the CPU.
at::Tensor WanPipeline::RunTextEncoder(const std::vector<int64_t>& padded_ids, int64_t length,
                                       const AttentionPlan& plan) const {
  if (!text_encoder_->loaded()) text_encoder_source_->Reload(text_encoder_.get());
  const at::Tensor ids = at::tensor(padded_ids, at::kLong).unsqueeze(0).to(device_);
  const at::Tensor mask = at::arange(ids.size(1), ids.options()).lt(length).to(at::kLong);
  ForwardContext context;
  context.attn_metadata = &plan;
  const ScopedForwardContext scope(context);
  const at::Tensor embeds = text_encoder_->Forward(ids, mask.unsqueeze(0));
  return embeds.narrow(1, 0, length).to(at::kCPU).clone();
}

void WanPipeline::ReleaseTextEncoder() const {
  text_encoder_->Release();
  malloc_trim(0);  // the heap keeps what is freed (threads.h), and this is most of a model
}

// Of host memory, now.
int64_t WanPipeline::TextEncoderBytes() const {
  return device_.is_cpu() && text_encoder_->loaded() ? text_encoder_->WeightBytes() : 0;
}

int64_t WanPipeline::MadeBytes() const {
  return transformer_->MadeBytes() + prompts_.bytes() + TextEncoderBytes() -
         text_encoder_bytes_at_load_;
}

}  // namespace denoised
