{
  description = "FlareDB: a distributed SQL database that speaks PostgreSQL's wire protocol";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      forEach = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      # bindgen reads RocksDB's C header through libclang; RocksDB itself is compiled from the crate's own sources.
      environment = pkgs: {
        LIBCLANG_PATH = "${pkgs.libclang.lib}/lib";
        BINDGEN_EXTRA_CLANG_ARGS = "-isystem ${pkgs.libclang.lib}/lib/clang/${pkgs.lib.versions.major pkgs.libclang.version}/include -isystem ${pkgs.glibc.dev}/include";
      };
    in
    {
      packages = forEach (pkgs: {
        default = pkgs.rustPlatform.buildRustPackage ({
          pname = "flaredb";
          version = "0.0.0";
          src = self;
          cargoLock.lockFile = ./Cargo.lock;
          cargoBuildFlags = [ "-p" "server" "--bin" "flaredb" ];
          # The tests start clusters and real clients: they run by `./dev test` in the dev shell.
          doCheck = false;
          meta = {
            description = "Distributed SQL database that speaks PostgreSQL's wire protocol";
            license = pkgs.lib.licenses.asl20;
            mainProgram = "flaredb";
          };
        } // environment pkgs);
      });

      devShells = forEach (pkgs: {
        default = pkgs.mkShell ({
          packages = with pkgs; [
            cargo
            rustc
            clippy
            rustfmt
            cargo-nextest
            postgresql
            (python3.withPackages (python: [ python.psycopg ]))
          ];
        } // environment pkgs);
      });
    };
}
