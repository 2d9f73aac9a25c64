// Compares algorithms of this program with their references in Python. Exit code 0: all are right.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>

#include <tr_mmap/tr_mmap.hpp>

// The algorithms under test: softmax of each row. The first one overflows for large numbers.
void naive_softmax(const float* x, float* result, std::int64_t rows, std::int64_t columns, float shift = 0) {
    for (std::int64_t row = 0; row < rows; ++row, x += columns, result += columns) {
        float sum = 0;
        for (std::int64_t i = 0; i < columns; ++i) sum += result[i] = std::exp(x[i] - shift);
        for (std::int64_t i = 0; i < columns; ++i) result[i] /= sum;
    }
}

void stable_softmax(const float* x, float* result, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t row = 0; row < rows; ++row, x += columns, result += columns)
        naive_softmax(x, result, 1, columns, *std::max_element(x, x + columns));
}

int main(int argc, char** argv) {
    try {
        tr::PythonSession session(argc > 1 ? argv[1] : "reference.py", "verify");
        session.start();
        if (!session.wait_until_ready(60'000)) throw std::runtime_error("the worker is not ready");

        const std::int64_t rows = 1000, columns = 512;
        std::mt19937 random(0);
        bool is_right = true;
        for (const float scale : {1.0f, 50.0f}) {
            std::normal_distribution<float> normal(0, scale);
            // Loans: the input and the results are written where the worker reads them.
            tr::Tensor x = session.empty<float>(tr::Shape(rows, columns));
            tr::Tensor naive = session.empty<float>(x.shape()), stable = session.empty<float>(x.shape());
            std::generate_n(x.data<float>(), rows * columns, [&] { return normal(random); });
            naive_softmax(x.data<float>(), naive.data<float>(), rows, columns);
            stable_softmax(x.data<float>(), stable.data<float>(), rows, columns);
            session.send_tensor(x, "x");
            session.send_tensor(naive, "naive");
            session.send_tensor(stable, "stable");
            for (const std::string name : {"naive", "stable"}) {
                const std::string report = session.fetch_response("compare x " + name + " softmax 1e-4 1e-7", 60'000);
                std::cout << name << ", scale " << scale << ": " << report << std::endl;
                is_right = is_right && report.rfind("ok", 0) == 0;
            }
        }
        return is_right ? 0 : 1;
    } catch (const std::exception& error) {  // tr::TRException is one
        std::cerr << error.what() << std::endl;
        return 2;
    }
}
