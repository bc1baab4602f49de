// Runs whole frames on the kernel's RTL: takes commands from standard input, a line each, and answers each with a line: "ok"
// or, for a started frame, a JSON object. The first command that fails ends the program with code 2 and a message.
//
//   load ADDRESS FILE          bytes of FILE into the DRAM
//   dump ADDRESS BYTES FILE    bytes of the DRAM into FILE
//   set OFFSET VALUE           write a 32-bit control register
//   get OFFSET                 read a control register; answers its value
//   dram NAME VALUE            a setting of the DRAM model: latency, bandwidth_q8, refresh_interval, refresh_length, stall_q8,
//                              seed, error_first, error_last, and `fault`, the number of a built-in fault
//   memory NAME SCOPE          the next bank of memory NAME is the array `words` in SCOPE
//   peek STEP NAME FILE        in the next frame, write the words of NAME to FILE when step STEP is over
//   start TIMEOUT              ap_start, then wait for ap_done: {"done": …, "cycles": …, "steps": […], "read_beats": …,
//                              "write_beats": …, "protocol_errors": …, "step_beats": […]}; `steps` are the cycles in which each header was taken,
//                              `step_beats` the data beats read until then
//   begin                      ap_start without waiting
//   run CYCLES                 let the clock run
//   reset                      hold reset for 16 cycles
//   trace FILE                 write waves (FST) from here on, where the bench was built with waves
//
// Numbers are decimal or 0x….
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "Vframe.h"
#include "Vframe___024root.h"
#include "verilated.h"
#include "verilated_syms.h"
#if VM_TRACE
#include "verilated_fst_c.h"
#endif

double sc_time_stamp() { return 0; }  // Verilator wants one where the time belongs to the context

namespace {

struct Peek {
  std::string memory, path;
};

class Bench {
 public:
  Bench() {
    context_.randReset(2);  // registers and memories start at random
    context_.randSeed(1);
    top_ = std::make_unique<Vframe>(&context_);
    top_->clk = 0;
    top_->latency = 150;
    top_->bandwidth_q8 = 3 * 256;
    top_->seed = 1;
    top_->error_first = 1;
    top_->error_last = 0;
    top_->control_bready = 1;
    top_->control_rready = 1;
    reset();
  }

  void tick() {
    if (top_->step_taken) {
      const auto ended = steps_.size() - 1;  // the step before this one
      for (auto [at, last] = peeks_.equal_range(ended); at != last; ++at) peek(at->second);
      steps_.push_back(cycle_);
      beats_.push_back(top_->read_beats);
    }
    top_->clk = 1;
    step();
    top_->clk = 0;
    step();
    ++cycle_;
  }

  void reset() {
    top_->rst_n = 0;
    for (int i = 0; i < 16; ++i) tick();
    top_->rst_n = 1;
    tick();
  }

  void write_register(uint32_t offset, uint32_t value) {
    top_->control_awaddr = offset;
    top_->control_wdata = value;
    top_->control_awvalid = 1;
    top_->control_wvalid = 1;
    bool address = false, data = false, response = false;
    while (!address || !data || !response) {
      top_->eval();
      const bool a = top_->control_awvalid && top_->control_awready;
      const bool d = top_->control_wvalid && top_->control_wready;
      response |= top_->control_bvalid != 0;
      tick();
      if (a) { address = true; top_->control_awvalid = 0; }
      if (d) { data = true; top_->control_wvalid = 0; }
    }
  }

  uint32_t read_register(uint32_t offset) {
    top_->control_araddr = offset;
    top_->control_arvalid = 1;
    for (;;) {
      top_->eval();
      const bool a = top_->control_arvalid && top_->control_arready;
      const bool r = top_->control_rvalid != 0;
      const uint32_t value = top_->control_rdata;
      tick();
      if (a) top_->control_arvalid = 0;
      if (r) return value;
    }
  }

  // Runs until the kernel raises its interrupt, or for `timeout` cycles.
  void start_and_wait(uint64_t timeout) {
    write_register(0x04, 1);  // global interrupt enable
    write_register(0x08, 1);  // on ap_done
    const uint64_t reads = top_->read_beats, writes = top_->write_beats;
    steps_.clear();
    beats_.clear();
    const uint64_t begin = cycle_;
    write_register(0x00, 1);
    while (!top_->irq && cycle_ - begin < timeout) tick();
    const bool done = top_->irq;
    const uint64_t cycles = cycle_ - begin;
    if (done) {
      write_register(0x0c, 1);  // clear
      read_register(0x00);      // clears ap_done
    }
    peeks_.clear();
    std::printf("{\"done\": %s, \"cycles\": %llu, \"read_beats\": %llu, \"write_beats\": %llu, \"protocol_errors\": %u, ",
                done ? "true" : "false", static_cast<unsigned long long>(cycles),
                static_cast<unsigned long long>(top_->read_beats - reads),
                static_cast<unsigned long long>(top_->write_beats - writes), top_->protocol_errors);
    std::printf("\"steps\": [");
    for (size_t n = 0; n < steps_.size(); ++n)
      std::printf("%s%llu", n ? ", " : "", static_cast<unsigned long long>(steps_[n] - begin));
    std::printf("], \"step_beats\": [");
    for (size_t n = 0; n < beats_.size(); ++n)
      std::printf("%s%llu", n ? ", " : "", static_cast<unsigned long long>(beats_[n] - reads));
    std::printf("]}\n");
  }

  bool memory(const std::string& name, const std::string& scope) {
    const VerilatedScope* const found = context_.scopeFind(scope.c_str());
    const VerilatedVar* const words = found ? found->varFind("words") : nullptr;
    if (!words) return false;
    memories_[name].push_back(words);
    return true;
  }

  bool peek_at(uint64_t step, const std::string& name, const std::string& path) {
    if (!memories_.count(name)) return false;
    peeks_.emplace(step, Peek{name, path});
    return true;
  }

  bool dram(const std::string& name, uint64_t value) {
    if (name == "latency") top_->latency = static_cast<uint16_t>(value);
    else if (name == "bandwidth_q8") top_->bandwidth_q8 = static_cast<uint16_t>(value);
    else if (name == "refresh_interval") top_->refresh_interval = static_cast<uint16_t>(value);
    else if (name == "refresh_length") top_->refresh_length = static_cast<uint16_t>(value);
    else if (name == "stall_q8") top_->stall_q8 = static_cast<uint8_t>(value);
    else if (name == "seed") top_->seed = static_cast<uint32_t>(value);
    else if (name == "error_first") top_->error_first = value;
    else if (name == "error_last") top_->error_last = value;
    else if (name == "fault") top_->fault = static_cast<uint16_t>(value);
    else return false;
    return true;
  }

  bool load(uint64_t address, const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return false;
    std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    auto& memory = top_->rootp->frame__DOT__dram__DOT__memory;
    if (address % 16 != 0 || address / 16 + (bytes.size() + 15) / 16 > memory.size()) return false;
    for (size_t beat = 0; beat * 16 < bytes.size(); ++beat) {
      const size_t left = bytes.size() - beat * 16;
      std::memcpy(&memory[address / 16 + beat], bytes.data() + beat * 16, left < 16 ? left : 16);
    }
    return true;
  }

  bool dump(uint64_t address, uint64_t count, const std::string& path) {
    auto& memory = top_->rootp->frame__DOT__dram__DOT__memory;
    if (address % 16 != 0 || address / 16 + (count + 15) / 16 > memory.size()) return false;
    std::ofstream file(path, std::ios::binary);
    for (uint64_t at = 0; at < count; at += 16)
      file.write(reinterpret_cast<const char*>(&memory[(address + at) / 16]),
                 static_cast<std::streamsize>(count - at < 16 ? count - at : 16));
    return static_cast<bool>(file);
  }

  bool trace(const std::string& path) {
#if VM_TRACE
    context_.traceEverOn(true);
    waves_ = std::make_unique<VerilatedFstC>();
    top_->trace(waves_.get(), 99);
    waves_->open(path.c_str());
    return true;
#else
    static_cast<void>(path);
    return false;
#endif
  }

  void finish() {
    top_->final();
#if VM_TRACE
    if (waves_) waves_->close();
#endif
  }

 private:
  // All banks of a memory, each word as Verilator keeps it: little endian, in 1, 2 or a multiple of 4 bytes.
  void peek(const Peek& wanted) {
    std::ofstream file(wanted.path, std::ios::binary);
    for (const VerilatedVar* words : memories_[wanted.memory])
      file.write(static_cast<const char*>(words->datap()), static_cast<std::streamsize>(words->totalSize()));
  }

  void step() {
    top_->eval();
    context_.timeInc(1);
#if VM_TRACE
    if (waves_) waves_->dump(context_.time());
#endif
  }

  VerilatedContext context_;
  std::unique_ptr<Vframe> top_;
#if VM_TRACE
  std::unique_ptr<VerilatedFstC> waves_;
#endif
  uint64_t cycle_ = 0;
  std::vector<uint64_t> steps_, beats_;  // at the steps' headers
  std::multimap<uint64_t, Peek> peeks_;
  std::map<std::string, std::vector<const VerilatedVar*>> memories_;
};

int fail(const std::string& line, const char* why, int code) {
  std::cerr << "frame bench: " << line << ": " << why << std::endl;
  return code;
}

int run(Bench& bench) {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string command, a, b, c;
    words >> command >> a >> b >> c;
    const auto number = [](const std::string& text) { return std::strtoull(text.c_str(), nullptr, 0); };
    if (command == "load") {
      if (!bench.load(number(a), b)) return fail(line, "cannot read the file, or it does not fit the DRAM", 2);
    } else if (command == "dump") {
      if (!bench.dump(number(a), number(b), c)) return fail(line, "cannot write the file, or outside the DRAM", 2);
    } else if (command == "set") {
      bench.write_register(static_cast<uint32_t>(number(a)), static_cast<uint32_t>(number(b)));
    } else if (command == "get") {
      std::printf("%u\n", bench.read_register(static_cast<uint32_t>(number(a))));
    } else if (command == "memory") {
      if (!bench.memory(a, b)) return fail(line, "no such scope with an array of words", 2);
    } else if (command == "peek") {
      if (!bench.peek_at(number(a), b, c)) return fail(line, "no such memory", 2);
    } else if (command == "dram") {
      if (!bench.dram(a, number(b))) return fail(line, "no such setting", 2);
    } else if (command == "start") {
      bench.start_and_wait(number(a));
    } else if (command == "begin") {
      bench.write_register(0x00, 1);
    } else if (command == "run") {
      for (uint64_t i = number(a); i != 0; --i) bench.tick();
    } else if (command == "reset") {
      bench.reset();
    } else if (command == "trace") {
      if (!bench.trace(a)) return fail(line, "built without waves", 2);
    } else if (!command.empty()) {
      return fail(line, "unknown command", 2);
    }
    if (command != "start" && command != "get") std::printf("ok\n");
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace

int main() {
  Bench bench;
  const int code = run(bench);
  bench.finish();
  return code;
}
