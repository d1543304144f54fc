// Operations that the lanes of a warp do together.
#include <bit>
#include <cstdio>

#include "clocks.h"
#include "runtime.h"
#include "sanitizer.h"

namespace simt {
namespace {

// A collective whose lanes are arriving. Masks that are in use at the same time in a warp have no lane in common, so
// the lowest lane of the mask identifies it.
struct Meeting {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const Collective* collective = nullptr;
  Where where;
  void* arguments[32] = {};
};

Meeting meetings[kMaxThreads / 32][32];

}  // namespace

void warp_collective(uint32_t mask, const Collective& operation, void* argument, const Where& where) {
  const EmulatorSection section;
  const Thread& self = current_thread();
  if (!(mask >> self.lane & 1u)) fail("the calling lane is not in the mask of its warp collective", where);
  Meeting& meeting = meetings[self.warp][std::countr_zero(mask)];
  if (meeting.arrived == 0) {
    meeting.mask = mask;
    meeting.collective = &operation;
    meeting.where = where;
  } else if (meeting.mask != mask || meeting.collective != &operation || meeting.where.line() != where.line()) {
    std::fprintf(stderr, "  %s at line %u meets %s at line %u\n", operation.name, where.line(),
                 meeting.collective->name, meeting.where.line());
    fail("divergent collective: lanes of a warp meet in different collectives", where);
  }
  meeting.arguments[self.lane] = argument;
  meeting.arrived |= 1u << self.lane;
  if (operation.orders_memory) publish_to(&meeting);
  if (meeting.arrived == mask) {
    operation.execute(mask, meeting.arguments);
    meeting.arrived = 0;
    if (operation.orders_memory) synchronise_lanes(self.warp * 32, mask);
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) make_ready(self.warp * 32 + std::countr_zero(rest));
  }
  suspend("waits in a warp collective", where);
  if (operation.orders_memory) learn_from(&meeting);
}

}  // namespace simt
