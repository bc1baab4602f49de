// hls::stream<T> and hls::stream<T, DEPTH>, as a queue for the C simulation or, with MOEHLS_RTL, as a port for the RTL
// generator.
//
// C simulation: unbounded, since the processes of a region run one after another; reading an empty stream aborts with
// the stream's name, for the hardware would hang there. A stream that still holds data when it dies is reported.
//
// C simulation with MOEHLS_BOUNDED: a stream holds no more than its depth, and the processes of a region take turns
// (hls_fibers.h), so that a FIFO which is too shallow hangs here as it does in hardware. Memories are checked too (hls_memory.h).
//
// RTL: a read is a volatile load from the stream's first member, a write a volatile store to it: volatile accesses keep
// their order and need no calling convention. The depth stands in the type, because pointers in LLVM carry none.
#pragma once

#ifdef MOEHLS_RTL

namespace hls {

template <class T, int DEPTH = 0> class stream;

/// What travels: a number's own bits, or the bytes of a struct.
template <class T> struct payload {
  using wire = unsigned _BitInt(8 * sizeof(T));
  static wire pack(const T& value) {
    wire bits;
    __builtin_memcpy(&bits, &value, sizeof(T));
    return bits;
  }
  static T unpack(const wire& bits) {
    T value;
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
  }
};
template <class T>
  requires requires { T::width; }
struct payload<T> {
  using wire = unsigned _BitInt(T::width);
  static wire pack(const T& value) { return value.raw(); }
  static T unpack(const wire& bits) {
    T value;
    value.set(bits);
    return value;
  }
};

/// The stream as a process sees it.
template <class T> class stream<T, 0> {
  volatile typename payload<T>::wire slot;

public:
  stream() = default;
  explicit stream(const char*) {}
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;

  T read() {
    const typename payload<T>::wire bits = slot;
    return payload<T>::unpack(bits);
  }
  void read(T& value) { value = read(); }
  void write(const T& value) { slot = payload<T>::pack(value); }
  void operator>>(T& value) { value = read(); }
  void operator<<(const T& value) { write(value); }
};

/// The stream as a region declares it: a FIFO of DEPTH places.
template <class T, int DEPTH> class stream : public stream<T, 0> {
  char depth[DEPTH];

public:
  stream() = default;
  explicit stream(const char*) {}
};

}  // namespace hls

#elif defined(MOEHLS_BOUNDED)

#include "hls_memory.h"

namespace hls {

template <class T, int DEPTH = 0> class stream;

/// A ring of as many places as the stream is deep.
template <class T> class stream<T, 0> : public channel {
  T* const places;
  std::size_t head = 0;

public:
  explicit stream(std::size_t places_) : places(static_cast<T*>(std::malloc(places_ * sizeof(T)))) { depth = places_; }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() {
    if (used != 0) std::fprintf(stderr, "stream '%s': %zu values left unread\n", name, used);
    std::free(places);
  }

  T read() {
    block(wait::value, this);
    const T value = places[head];
    head = head + 1 == depth ? 0 : head + 1;
    --used;
    return value;
  }
  void read(T& value) { value = read(); }
  void write(const T& value) {
    block(wait::room, this);
    places[(head + used) % depth] = value;
    ++used;
  }
  void operator>>(T& value) { value = read(); }
  void operator<<(const T& value) { write(value); }
};

template <class T, int DEPTH> class stream : public stream<T, 0> {
public:
  stream() : stream<T, 0>(DEPTH) {}
  explicit stream(const char*) : stream<T, 0>(DEPTH) {}
};

template <class T, int DEPTH> void name_stream(stream<T, DEPTH>& one, const char* name) { one.name = name; }
template <class T, int DEPTH, int COUNT> void name_stream(stream<T, DEPTH> (&many)[COUNT], const char* name) {
  for (int i = 0; i < COUNT; ++i) {
    many[i].name = name;
    many[i].index = i;
  }
}

}  // namespace hls

#else

#include <cstdio>
#include <cstdlib>

namespace hls {

template <class T, int DEPTH = 0> class stream;

/// A queue in one piece of memory that grows. It needs nothing of the C++ library, so that an object file links without one.
template <class T> class stream<T, 0> {
  T* places = nullptr;
  std::size_t head = 0, tail = 0, capacity = 0;
  const char* name;

  void grow() {
    const std::size_t count = size();
    if (head < capacity / 2) capacity *= 2;
    if (capacity == 0) capacity = 16;
    T* const moved = static_cast<T*>(std::malloc(capacity * sizeof(T)));
    if (moved == nullptr) {
      std::fprintf(stderr, "stream '%s': no memory for %zu values\n", name, count);
      std::abort();
    }
    for (std::size_t i = 0; i < count; ++i) moved[i] = places[head + i];
    std::free(places);
    places = moved;
    head = 0;
    tail = count;
  }

public:
  explicit stream(const char* stream_name = "hls::stream") : name(stream_name) {}
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() {
    if (!empty()) std::fprintf(stderr, "stream '%s': %zu values left unread\n", name, size());
    std::free(places);
  }

  bool empty() const { return head == tail; }
  bool full() const { return false; }
  std::size_t size() const { return tail - head; }

  T read() {
    if (empty()) {
      std::fprintf(stderr, "stream '%s' is read while empty: the hardware would hang\n", name);
      std::abort();
    }
    const T value = places[head++];
    if (empty()) head = tail = 0;
    return value;
  }
  void read(T& value) { value = read(); }
  bool read_nb(T& value) {
    if (empty()) return false;
    value = read();
    return true;
  }
  void write(const T& value) {
    if (tail == capacity) grow();
    places[tail++] = value;
  }
  bool write_nb(const T& value) {
    write(value);
    return true;
  }
  void operator>>(T& value) { value = read(); }
  void operator<<(const T& value) { write(value); }
};

template <class T, int DEPTH> class stream : public stream<T, 0> {
public:
  stream() = default;
  explicit stream(const char* stream_name) : stream<T, 0>(stream_name) {}
};

}  // namespace hls

#endif
