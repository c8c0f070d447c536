// Sessions: trajectories whose latents stay in the engine, and what may be asked of them. Plain
// values, torch-free.
#ifndef DENOISED_RUNTIME_SESSION_H_
#define DENOISED_RUNTIME_SESSION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "backends/error.h"
#include "runtime/job.h"

namespace denoised {

// What a session may bring where a job has a prompt and a schedule.
struct SessionGiven {
  std::optional<HostTensor> encoder_hidden_states;           // [1, L, text_dim]; no prompt then
  std::optional<HostTensor> negative_encoder_hidden_states;  // likewise; for guidance
  // Noise levels of the steps, descending, above 0 and at most 1; the last step ends at 0. No shift
  // is applied.
  std::vector<double> sigmas;
};

struct SessionRequest {
  // Formats, deadline, key and previews mean nothing here. Sizes that are left open are those of
  // the latents, where there are any.
  GenerationRequest generation;
  SessionGiven given;
};

// The verbs.
struct SessionStep {
  int64_t count = 1;
};
struct SessionRead {};
struct SessionWrite {
  std::optional<HostTensor> latents;  // [1, C, f, h, w] float32 or bfloat16; unset: as they are
  std::optional<int64_t> step;        // before which they stand; unset: the next one
  // The solver goes on with what it remembers of earlier steps; not with `step`.
  bool keep_history = false;
};
struct SessionFork {};
struct SessionSet {
  std::optional<double> guidance_scale;
  std::optional<AttentionOptions> attention;
};
struct SessionClose {};
using SessionVerb =
    std::variant<SessionStep, SessionRead, SessionWrite, SessionFork, SessionSet, SessionClose>;

// Where a session stands.
struct SessionState {
  std::string id;
  int64_t step = 0, num_steps = 0;  // steps done, steps in all
  double sigma = 0;                 // noise level of the latents
};

// What a session was opened with.
struct SessionOpened {
  ResolvedParameters parameters;
  std::vector<int64_t> latents_shape;
  std::vector<double> sigmas;  // of every step, and after the last
};

struct SessionReply {
  SessionState state;
  std::optional<Error> error;             // the verb was refused or failed; `state` tells where
  std::optional<SessionOpened> opened;    // of OpenSession
  std::optional<HostTensor> latents;      // of a read, float32
  std::optional<Receipt> receipt;         // of steps
  double queue_seconds = 0, seconds = 0;  // of steps: waiting, and in forwards
  std::string forked;                     // of a fork: the new session's id
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_SESSION_H_
