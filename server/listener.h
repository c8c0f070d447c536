// A listening socket. Every port of the server is bound before anything is loaded, so that a taken
// one ends the start at once, with its flag and the reason.
#ifndef DENOISED_SERVER_LISTENER_H_
#define DENOISED_SERVER_LISTENER_H_

#include <netdb.h>

#include <string>
#include <vector>

#include "server/config.h"

namespace denoised {

class Listener {
 public:
  // Binds every address that the host means (a name may have several) and listens. Throws Error
  // (UNAVAILABLE; the field is `flag`) with the system's reason.
  Listener(const std::string& flag, const ListenAddress& address);
  ~Listener() { Close(); }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  int port() const { return port_; }  // the real one where 0 was asked for
  const std::vector<int>& fds() const { return fds_; }
  // Where this machine reaches it: "127.0.0.1:50051", also for 0.0.0.0.
  std::string LocalTarget() const;
  void Close();

 private:
  // Where `info` cannot be bound: false, and why in `error`.
  bool Bind(const addrinfo& info, int port, int* error);

  std::vector<int> fds_;
  int port_ = 0;
};

// A connection of `fd`, ready for use (non-blocking, no delay), or -1 with errno.
int AcceptConnection(int fd);

}  // namespace denoised

#endif  // DENOISED_SERVER_LISTENER_H_
