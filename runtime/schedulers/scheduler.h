// Noise schedules and their solvers. ("Scheduler" means noise here, as in diffusers; jobs are
// queued by the engine.)
#ifndef DENOISED_RUNTIME_SCHEDULERS_SCHEDULER_H_
#define DENOISED_RUNTIME_SCHEDULERS_SCHEDULER_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace denoised {

class ConfigReader;

// A solver between two steps, as plain values for whoever keeps them: beside the latents of
// `next_step` all that the rest of a trajectory depends on.
struct SolverState {
  std::string solver;  // class and options, for Restore to compare
  int64_t next_step = 0;
  // On the CPU; "sigmas" is the schedule, the others are the history, each as large as the latents.
  // They share the scheduler's memory, which nobody writes to again.
  std::map<std::string, at::Tensor> tensors;
};

// One per job: holds the job's schedule and the history of its solver; what follows from the
// schedule alone is shared by all that have the same. Used by the engine thread. All arithmetic is
// that of diffusers' class of the same name, bit for bit.
class Scheduler {
 public:
  // The class that model_index.json names, from a scheduler_config.json that any class may have
  // written: as in diffusers, options of other classes mean nothing to it, and those that the
  // writer lists under _use_default_values are the class's own defaults. INVALID_ARGUMENT naming
  // file, key and value for a class or an option that is not built here.
  static std::unique_ptr<Scheduler> Create(const std::string& class_name,
                                           const ConfigReader& reader);
  virtual ~Scheduler() = default;

  // A scheduler of the same configuration without a schedule or history.
  virtual std::unique_ptr<Scheduler> Clone() const = 0;
  // One that goes on from here: schedule and history too. They share tensors, which nobody writes
  // to again.
  virtual std::unique_ptr<Scheduler> Copy() const = 0;

  // Lays out `steps` steps and forgets any history. `shift` replaces the configured time shift.
  // INVALID_ARGUMENT unless 1 <= steps <= 10000 and shift > 0.
  void SetTimesteps(int64_t steps, std::optional<double> shift = std::nullopt);
  // The same with the noise levels of the steps as they are, no shift: diffusers'
  // set_timesteps(sigmas=) with a shift of 1. The last step ends at 0. INVALID_ARGUMENT naming
  // "sigmas" unless they descend, each in float32, from at most 1 to above 0.
  void SetSigmas(const std::vector<double>& sigmas);
  // Forgets the history and goes to step `step` of the schedule, as if the trajectory began there
  // (diffusers' set_begin_index): what has more than one step in it starts at its lowest order.
  // INVALID_ARGUMENT naming "step" unless 0 <= step <= steps().
  void BeginAt(int64_t step);

  // The configured time shift.
  virtual double shift() const = 0;

  int64_t steps() const { return static_cast<int64_t>(timesteps_.size()); }
  // What is fed to the model, descending: whole numbers for UniPC, any for Euler.
  const std::vector<double>& timesteps() const { return timesteps_; }
  // Noise levels, steps() + 1 of them, ending in 0.
  const std::vector<double>& sigmas() const { return sigmas_; }

  // The model's time input of step i for `batch` rows, [batch]; int64 for UniPC, float32 for Euler.
  virtual at::Tensor TimestepTensor(int64_t i, int64_t batch, at::Device device) const = 0;

  // From the latents of step i and the model's output for them to the latents of step i + 1, in the
  // dtype that diffusers gives. Steps come in order, each once; FAILED_PRECONDITION otherwise.
  // `sample` is float32 and keeps its values.
  at::Tensor Step(const at::Tensor& model_output, int64_t i, const at::Tensor& sample);

  // After SetTimesteps, between two steps.
  SolverState Save() const;
  // Goes on where `state` was saved, with the same bits: after SetTimesteps of the same schedule,
  // before the step that `latents` belong to; history goes to their device. INVALID_ARGUMENT,
  // nothing changed, where the state is another solver's or schedule's or is not what its step
  // needs.
  void Restore(const SolverState& state, const at::Tensor& latents);

 protected:
  using History = std::map<std::string, at::Tensor>;

  // Class and options, all that the arithmetic depends on beside the schedule.
  virtual std::string Solver() const = 0;
  // What steps before `next_step` left, by name; the names depend on the step alone.
  virtual std::vector<std::string> HistoryNames(int64_t next_step) const = 0;
  virtual History GetHistory() const = 0;
  virtual void SetHistory(int64_t next_step, const History& history) = 0;

  // Noise levels of the steps, 1 to above 0, shifted.
  virtual std::vector<double> MakeSigmas(int64_t steps, std::optional<double> shift) const = 0;
  // Keeps the schedule of these.
  virtual void LayOut(std::vector<double> sigmas) = 0;
  virtual at::Tensor Advance(const at::Tensor& model_output, int64_t i,
                             const at::Tensor& sample) = 0;

  // float32, from which sigmas() is read: solvers take 0-dim slices, as the reference does.
  void KeepSchedule(std::vector<double> timesteps, const at::Tensor& sigmas);
  const at::Tensor& sigma_tensor() const { return sigma_tensor_; }
  // What the history begins with.
  int64_t first_step() const { return first_step_; }

 private:
  void CheckFits(const SolverState& state, const at::Tensor& latents) const;
  std::string SolverAndBegin() const;

  std::vector<double> timesteps_;
  std::vector<double> sigmas_;
  at::Tensor sigma_tensor_;
  int64_t next_step_ = 0, first_step_ = 0;
};

// numpy.linspace in float64, with its order of operations.
std::vector<double> Linspace(double start, double stop, int64_t count);

}  // namespace denoised

#endif  // DENOISED_RUNTIME_SCHEDULERS_SCHEDULER_H_
