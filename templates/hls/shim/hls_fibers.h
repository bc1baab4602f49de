// Processes as fibers, for a C simulation with bounded streams (MOEHLS_BOUNDED).
//
// In a region every call becomes `hls::spawn("name", [&] { call; })` and its end `hls::join()`; `moehls.simulate.bounded`
// rewrites the sources so. A process runs until a stream it reads is empty or one it writes is full, then another one does.
// Where none can go on the hardware would hang: `run` ends and `report` says what each process waits for. It ends as well where an
// index lies outside of its memory (hls_memory.h).
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <ucontext.h>

namespace hls {

/// What a fiber waits for: nothing, a value of a stream, room in one, or the end of the processes it has started.
enum class wait { none, value, room, children };

/// A stream as the fibers see it: how much it holds and may hold.
struct channel {
  const char* name = "hls::stream";
  int index = -1;  // in an array of streams
  std::size_t used = 0, depth = 0;
};

struct fiber {
  ucontext_t context;
  char* stack;
  const char* name;
  void (*call)(void*);
  void* closure;
  fiber* parent;
  int children;
  wait waits;
  const channel* on;
  bool done;
};

constexpr int MAX_FIBERS = 64;
constexpr std::size_t STACK_BYTES = std::size_t(1) << 22;  // the hook of a trace runs on one

inline fiber fibers[MAX_FIBERS];
inline int fiber_count = 0;
inline fiber* running = nullptr;
inline ucontext_t scheduler;
inline char report[4096];
inline bool failed = false;  // an index lay outside of its memory

inline bool can_go_on(const fiber& f) {
  switch (f.waits) {
    case wait::value: return f.on->used != 0;
    case wait::room: return f.on->used != f.on->depth;
    case wait::children: return f.children == 0;
    default: return true;
  }
}

/// Lets others run until `reason` is gone.
inline void block(wait reason, const channel* on) {
  running->waits = reason;
  running->on = on;
  if (!can_go_on(*running)) swapcontext(&running->context, &scheduler);
  running->waits = wait::none;
}

inline void enter() {
  running->call(running->closure);
  std::free(running->closure);
  running->done = true;
  if (running->parent != nullptr) --running->parent->children;
  setcontext(&scheduler);
}

/// Starts `call` as a process of the running one.
template <class Call> void spawn(const char* name, const Call& call) {
  fiber* f = nullptr;
  for (int i = 0; i < fiber_count && f == nullptr; ++i) {
    if (fibers[i].done) f = &fibers[i];
  }
  if (f == nullptr) {
    if (fiber_count == MAX_FIBERS) {
      std::fprintf(stderr, "more than %d processes at once\n", MAX_FIBERS);
      std::abort();
    }
    f = &fibers[fiber_count++];
    f->stack = static_cast<char*>(std::malloc(STACK_BYTES));
  }
  f->name = name;
  f->call = [](void* closure) { (*static_cast<Call*>(closure))(); };
  f->closure = std::malloc(sizeof(Call));
  __builtin_memcpy(f->closure, static_cast<const void*>(&call), sizeof(Call));
  f->parent = running;
  f->children = 0;
  f->waits = wait::none;
  f->done = false;
  if (running != nullptr) ++running->children;
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack;
  f->context.uc_stack.ss_size = STACK_BYTES;
  f->context.uc_link = nullptr;
  makecontext(&f->context, enter, 0);
}

/// Ends the frame: an index lies outside of a memory.
[[noreturn]] inline void outside(const char* name, unsigned long long index, unsigned long long depth) {
  std::snprintf(report, sizeof report, "index %lld outside of %s (depth %llu)", static_cast<long long>(index), name, depth);
  failed = true;
  swapcontext(&running->context, &scheduler);
  std::abort();
}

/// Waits for the processes that the running one has started.
inline void join() { block(wait::children, nullptr); }

inline std::size_t describe(const fiber& f, char* out, std::size_t room) {
  if (f.waits == wait::children) return std::size_t(std::snprintf(out, room, "; %s waits for its processes", f.name));
  char place[16] = "";
  if (f.on->index >= 0) std::snprintf(place, sizeof place, "[%d]", f.on->index);
  const bool full = f.waits == wait::room;
  return std::size_t(std::snprintf(out, room, "; %s waits for %s %s%s, which is %s (depth %zu)", f.name,
                                   full ? "room in" : "a value of", f.on->name, place, full ? "full" : "empty",
                                   f.on->depth));
}

/// Runs `call` and all it starts; false where they hang or leave a memory, then `report` says why.
template <class Call> bool run(const char* name, const Call& call) {
  for (int i = 0; i < fiber_count; ++i) fibers[i].done = true;
  running = nullptr;
  failed = false;
  spawn(name, call);
  fiber* const root = &fibers[0];
  while (!root->done) {
    bool moved = false;
    for (int i = 0; i < fiber_count; ++i) {
      if (fibers[i].done || !can_go_on(fibers[i])) continue;
      moved = true;
      running = &fibers[i];
      swapcontext(&scheduler, &running->context);
      if (failed) return false;
    }
    if (moved) continue;
    std::size_t at = std::size_t(std::snprintf(report, sizeof report, "deadlock"));
    for (int i = 0; i < fiber_count && at < sizeof report - 200; ++i) {
      if (!fibers[i].done) at += describe(fibers[i], report + at, sizeof report - at);
    }
    return false;
  }
  return true;
}

}  // namespace hls
