#include "server/listener.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "backends/error.h"

namespace denoised {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

void SetPort(sockaddr_storage* address, int port) {
  const in_port_t network = htons(static_cast<uint16_t>(port));
  if (address->ss_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = network;
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = network;
  }
}

sockaddr_storage AddressOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return address;
}

int PortOf(int fd) {
  const sockaddr_storage address = AddressOf(fd);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

Error CannotListen(const std::string& flag, const ListenAddress& address, const char* why) {
  return Error(StatusCode::kUnavailable,
               "--" + flag + ": cannot listen on " + address.ToString() + ": " + why, flag);
}

AddressList Resolve(const std::string& flag, const ListenAddress& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(address.host.c_str(), "0", &hints, &found);
  if (failed != 0) throw CannotListen(flag, address, gai_strerror(failed));
  return {found, freeaddrinfo};
}

}  // namespace

Listener::Listener(const std::string& flag, const ListenAddress& address) : port_(address.port) {
  const AddressList addresses = Resolve(flag, address);
  int error = EADDRNOTAVAIL;
  for (const addrinfo* info = addresses.get(); info != nullptr; info = info->ai_next) {
    const int port = fds_.empty() ? address.port : port_;
    if (Bind(*info, port, &error)) {
      port_ = PortOf(fds_.back());
    } else if (error == EADDRINUSE && address.port != 0) {
      Close();  // half a name is no name: clients would reach somebody else by the other half
      break;
    }
  }
  if (fds_.empty()) throw CannotListen(flag, address, std::strerror(error));
}

bool Listener::Bind(const addrinfo& info, int port, int* error) {
  sockaddr_storage address{};
  std::memcpy(&address, info.ai_addr, info.ai_addrlen);
  SetPort(&address, port);
  const int fd = socket(info.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int yes = 1, no = 0;
  // Not SO_REUSEPORT: a second server on the port must fail instead of sharing its connections.
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (info.ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
  if (fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), info.ai_addrlen) == 0 &&
      listen(fd, SOMAXCONN) == 0) {
    fds_.push_back(fd);
    return true;
  }
  *error = errno;
  if (fd >= 0) close(fd);
  return false;
}

std::string Listener::LocalTarget() const {
  const sockaddr_storage address = AddressOf(fds_.front());
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  const auto& v4 = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
  const bool is_v6 = address.ss_family == AF_INET6;
  if (is_v6 && IN6_IS_ADDR_UNSPECIFIED(&v6)) return ListenAddress{"::1", port_}.ToString();
  if (!is_v6 && v4.s_addr == INADDR_ANY) return ListenAddress{"127.0.0.1", port_}.ToString();
  char host[NI_MAXHOST] = "";
  getnameinfo(reinterpret_cast<const sockaddr*>(&address), sizeof(address), host, sizeof(host),
              nullptr, 0, NI_NUMERICHOST);
  return ListenAddress{host, port_}.ToString();
}

void Listener::Close() {
  for (const int fd : fds_) close(fd);
  fds_.clear();
}

int AcceptConnection(int fd) {
  const int connection = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  const int yes = 1;
  if (connection >= 0) setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  return connection;
}

}  // namespace denoised
