// What happens when somebody ends denoisectl in the middle: Ctrl-C, SIGTERM, a terminal that
// closes.
#ifndef DENOISED_SERVER_CLI_INTERRUPTS_H_
#define DENOISED_SERVER_CLI_INTERRUPTS_H_

#include <functional>
#include <memory>

namespace denoised::cli {

// Ends the program by the signal that came, at once, after the hooks have run on a thread of its
// own. Calls to a server end with the process: the server sees the connection close. Signals that
// the parent has set to be ignored (nohup, a background job) stay ignored.
class Interrupts {
 public:
  // One a program, before any other thread starts: threads inherit which signals are blocked.
  Interrupts();

  // `hook` runs when a signal ends the program, until the returned handle is gone. It must be
  // short, owns what it touches, and may run while the handle goes.
  std::shared_ptr<void> AtEnd(std::function<void()> hook);

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

}  // namespace denoised::cli

#endif  // DENOISED_SERVER_CLI_INTERRUPTS_H_
