#include "runtime/engine/fair_turn.h"

#include <algorithm>

namespace denoised {

void FairTurn::Enter(Seats::iterator seat) {
  all_.insert(seat);
  if (seat->second.ahead) {
    ahead_.insert(seat);
  } else {
    ready_.insert(seat);
  }
}

void FairTurn::Leave(Seats::iterator seat) {
  all_.erase(seat);
  if (seat->second.ahead) {
    ahead_.erase(seat);
  } else {
    ready_.erase(seat);
  }
}

void FairTurn::SetAhead(Seats::iterator seat, bool ahead) {
  Leave(seat);
  seat->second.ahead = ahead;
  Enter(seat);
}

void FairTurn::Place(const std::string& tenant, double virtual_time, std::optional<Head> head) {
  auto seat = seats_.find(tenant);
  if (seat != seats_.end()) {
    Leave(seat);
    if (!head) seats_.erase(seat);
  } else if (head) {
    seat = seats_.emplace(tenant, Seat{}).first;
  }
  if (!head) return;
  seat->second.virtual_time = virtual_time;
  seat->second.head = *head;
  Enter(seat);
}

std::optional<FairTurn::Head> FairTurn::Turn() {
  if (all_.empty()) return std::nullopt;
  const Seat& last = (*all_.begin())->second;
  while (!ahead_.empty() && (*ahead_.begin())->second.virtual_time <= last.virtual_time) {
    SetAhead(*ahead_.begin(), false);
  }
  for (;;) {
    const Seats::iterator first = *ready_.begin();
    const Seat& seat = first->second;
    const double room = std::min(seat.head.seconds, last.head.seconds);
    if (seat.virtual_time <= last.virtual_time + room) return seat.head;
    SetAhead(first, true);
  }
}

std::optional<double> FairTurn::LeastVirtualTime() const {
  if (all_.empty()) return std::nullopt;
  return (*all_.begin())->second.virtual_time;
}

}  // namespace denoised
