// Whose turn it is among tenants that share a device. Torch-free; belongs to one WorkQueue.
//
// Start-time fair queueing (Goyal, Vin and Cheng 1996) with one job's worth of slack: a tenant's
// virtual time is the device seconds it was charged with, and while several wait none gets ahead of
// the one that is furthest behind by more than the shorter of their two next works. Up to there who
// is due first goes first, so tenants that leave each other room are served as if they were one. A
// tenant that got ahead lets others pass until they have caught up, so that equal long works of
// two tenants run one after the other, not in slices.
#ifndef DENOISED_RUNTIME_ENGINE_FAIR_TURN_H_
#define DENOISED_RUNTIME_ENGINE_FAIR_TURN_H_

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "runtime/engine/order_tree.h"

namespace denoised {

class FairTurn {
 public:
  // A tenant's first work.
  struct Head {
    OrderKey key;
    double seconds = 0;  // its length, begun or not
  };

  // The tenant's state from now on; without a head it takes no part. O(log tenants).
  void Place(const std::string& tenant, double virtual_time, std::optional<Head> head);
  // The head whose turn it is. O(log tenants), amortised: what it sets aside was charged for.
  std::optional<Head> Turn();
  // Of the tenant that is furthest behind; empty where nobody takes part.
  std::optional<double> LeastVirtualTime() const;

 private:
  struct Seat {
    double virtual_time = 0;
    Head head;
    bool ahead = false;  // lets others pass
  };
  using Seats = std::map<std::string, Seat>;
  struct ByTime {
    bool operator()(Seats::iterator a, Seats::iterator b) const {
      return std::pair(a->second.virtual_time, &a->first) <
             std::pair(b->second.virtual_time, &b->first);
    }
  };
  struct ByDue {
    bool operator()(Seats::iterator a, Seats::iterator b) const {
      return a->second.head.key < b->second.head.key;
    }
  };

  void Enter(Seats::iterator seat);
  void Leave(Seats::iterator seat);
  void SetAhead(Seats::iterator seat, bool ahead);

  Seats seats_;
  std::set<Seats::iterator, ByTime> all_, ahead_;
  std::set<Seats::iterator, ByDue> ready_;  // those not ahead
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_FAIR_TURN_H_
