// How long it takes to pass a tensor to the worker and get one back. For tools/bench; prints one line of JSON.
//
//   echo WORKER.py COMMAND MIB COUNT [loaned|copied]
//
// COMMAND is answered with a tensor of the same size. "loaned" asks for a loan each time and touches its ends;
// "copied" sends a tensor of this program's own memory. Build it with -O2.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "tr_mmap/tr_mmap.hpp"

int main(int argc, char** argv) {
    if (argc < 5) {
        std::cerr << "usage: echo WORKER.py COMMAND MIB COUNT [loaned|copied]\n";
        return 2;
    }
    const std::string command = argv[2], mode = argc > 5 ? argv[5] : "loaned";
    const auto size = static_cast<std::int64_t>(std::atof(argv[3]) * (1 << 20) / sizeof(float));
    const int count = std::atoi(argv[4]);
    try {
        tr::PythonSession session(argv[1], "echo-" + std::to_string(::getpid()), true);
        session.start();
        session.wait_until_ready(60'000);
        const tr::Tensor own = tr::Tensor::full(tr::Shape(size), 1.0f);
        std::vector<double> times_us;
        for (int i = -10; i < count; ++i) {  // the first ones make the segments
            const auto start = std::chrono::steady_clock::now();
            tr::Tensor sent = mode == "loaned" ? session.empty<float>(tr::Shape(size)) : own;
            const auto value = static_cast<float>(i);
            if (mode == "loaned") {
                float* elements = sent.data<float>();
                elements[0] = value;
                elements[size - 1] = value;
            }
            const tr::Tensor result = session.calculate(command, sent, 60'000);
            const float* elements = result.data<float>();
            const volatile float ends[] = {elements[0], elements[size - 1]};
            const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
            if (i >= 0) times_us.push_back(took.count());
            if (result.numel() != size || (mode == "loaned" && (ends[0] != value || ends[1] != value))) {
                std::cerr << "a wrong result\n";
                return 1;
            }
        }
        std::sort(times_us.begin(), times_us.end());
        std::cout << "{\"nbytes\": " << own.nbytes() << ", \"mode\": \"" << mode << "\", \"count\": " << count
                  << ", \"min_us\": " << times_us.front() << ", \"median_us\": " << times_us[times_us.size() / 2]
                  << ", \"p95_us\": " << times_us[times_us.size() * 95 / 100] << "}" << std::endl;
    } catch (const tr::TRException& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
