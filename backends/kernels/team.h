// Threads that help their owner with one loop after the other. Torch-free.
//
// Why not OpenMP's: its loops end when every thread has come and gone, so where a processor is busy
// with something else (a client, the thread that writes answers), all wait for a helper that has
// not begun and has nothing left to do; and its helpers spin for milliseconds between two loops,
// which takes that processor from whoever could use it. Here a helper that is late is not waited
// for, and one that finds no work sleeps after kSpin.
#ifndef DENOISED_BACKENDS_KERNELS_TEAM_H_
#define DENOISED_BACKENDS_KERNELS_TEAM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "backends/kernels/workers.h"

namespace denoised::kernels {

// One owner thread, and helpers that are started when they are first asked for.
class Team {
 public:
  Team();
  ~Team();  // waits for the helpers to end
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Runs `work` as worker 0 of `count` here, and as worker i on the i-th helper if that one is
  // there before this thread is done: `work` takes tasks until none is left (TaskShares), so that
  // whoever comes does all of it. Throws what a worker threw, this thread's own first. Within
  // `work`, a call of any team's Run is alone on its thread. By the owner.
  void Run(int64_t count, const std::function<void(const Worker&)>& work);

 private:
  class Helper;
  std::vector<std::unique_ptr<Helper>> helpers_;
};

// The calling thread's own, which ends with it.
Team& OwnTeam();

}  // namespace denoised::kernels

#endif  // DENOISED_BACKENDS_KERNELS_TEAM_H_
